"""The shipped unit in a real systemd: a Debian tree, made by debootstrap and booted by systemd-nspawn.

The commands are those of docs/howto-systemd.md.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import program, wait_until

ROOT = Path(__file__).parents[2]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,openssl,curl,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSWORD = "a password of the console"
MIRROR = "http://deb.debian.org/debian"
INSTALL = """
set -e
cd /src
/usr/bin/python3 -m venv /opt/push1st
/opt/push1st/bin/pip install -q --require-hashes -r requirements.lock
/opt/push1st/bin/pip install -q --no-deps .
ln -s /opt/push1st/bin/push1st /usr/local/bin/push1st
install -m 0644 deploy/push1st.service /etc/systemd/system/push1st.service
systemctl enable push1st
"""


class Machine:
    """A booted tree. `leader`: the process of its systemd, as this machine sees it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.leader = 0

    def run(self, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "sh", "-c", command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout, check=False, env={"PATH": PATH})

    def write(self, file: str, text: str) -> None:
        """Writes a file that the service may read."""
        done = self.run(f"cat > {file} <<'END'\n{text}\nEND\nchown root:push1st {file}; chmod 0640 {file}")
        assert done.returncode == 0, done.stderr

    @property
    def main(self) -> str:
        return self.run("systemctl show -p MainPID push1st").stdout


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A Debian tree with the server installed as the page says. `PUSH1ST_TREE` keeps the tree in this folder for the next run."""
    if os.getuid() != 0:
        pytest.skip("needs root, for debootstrap and systemd-nspawn")
    debootstrap = program("debootstrap")
    program("systemd-nspawn", "systemd-container")
    kept = os.environ.get("PUSH1ST_TREE")
    folder = Path(kept or tempfile.mkdtemp(prefix="p1-tree-"))
    folder.chmod(0o755)  # the root folder of the services, which run as other users
    try:
        if not (folder / "etc").exists():
            made = subprocess.run(
                [debootstrap, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder), MIRROR],
                capture_output=True,
                text=True,
                check=False,
            )
            assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
            for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
                shutil.copyfile(file, f"{folder}{file}")
        for name in ("opt/push1st", "src"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "usr/local/bin/push1st").unlink(missing_ok=True)
        shutil.copytree(ROOT, folder / "src", ignore=shutil.ignore_patterns(".*", "node_modules", "tests"))
        done = subprocess.run(["chroot", str(folder), "sh", "-c", INSTALL], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        configure = "\n".join(
            re.findall(r"```bash\n((?:useradd|push1st app add).*?)```", (ROOT / "docs/howto-systemd.md").read_text(), re.DOTALL)
        )
        assert "push1st app add shop" in configure
        done = subprocess.run(
            ["chroot", str(folder), "sh", "-ec", f"cd /src; userdel push1st 2>/dev/null || :; rm -rf /etc/push1st; {configure}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def booted(tree: Path) -> Iterator[Machine]:
    command = ["systemd-nspawn", "-D", str(tree), "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--boot"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        machine = Machine(tree)
        try:

            def leader() -> bool:
                found = subprocess.run(
                    ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
                ).stdout.split()
                for pid in found:
                    machine.leader = int(pid)
                    if machine.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"):
                        return True
                return False

            wait_until(leader, "systemd has booted", 60)
            yield machine
        finally:
            if machine.leader:
                os.kill(machine.leader, signal.SIGRTMIN + 4)  # systemd powers off
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            process.kill()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_systemctl_reload_applies_changes_in_place_and_fails_if_nothing_was_changed(tree: Path, workers: int) -> None:
    with booted(tree) as machine:
        server = (ROOT / "deploy/server.yml").read_text()
        server = server.replace("server:", f"server:\n  workers: {workers}", 1)
        machine.write("/etc/push1st/server.yml", f"{server}\nconsole: {{ password: {PASSWORD} }}")
        assert machine.run("systemctl restart push1st").returncode == 0
        ready = "curl -sf http://127.0.0.1:6002/ready"
        wait_until(lambda: machine.run(ready).returncode == 0, "the service is ready", 60)
        main = machine.main
        sign_in = f"""curl -sf -H 'Push1st-Console: 1' -H 'Origin: http://127.0.0.1:6003' \
            -d '{{"password": "{PASSWORD}"}}' http://127.0.0.1:6003/api/login"""
        assert machine.run(sign_in).returncode == 0, machine.run("journalctl -u push1st --no-pager").stdout
        machine.run(
            "PYTHONUNBUFFERED=1 push1st subscribe -c /etc/push1st/server.yml --app shop private-c > /received 2>&1 < /dev/null &"
        )
        wait_until(lambda: "subscribed" in machine.run("cat /received").stdout, "the client is subscribed", 30)

        machine.write("/etc/push1st/apps/more.yml", "more: { key: more-key, secret: a-random-secret-of-more-than-32-bytes }")
        done = machine.run("systemctl reload push1st")
        assert (done.returncode, done.stderr) == (0, "")
        assert machine.run("curl -sf http://127.0.0.1:6002/apps/more/channels").stdout == "[]"
        log = machine.run("journalctl -u push1st --no-pager").stdout
        assert "app more: added" in log

        for command in ("push1st reload", "runuser -u push1st -- push1st reload", "push1st reload -c /etc/push1st/server.yml"):
            found = machine.run(command)
            assert (found.returncode, found.stderr) == (0, ""), command

        machine.write("/etc/push1st/apps/more.yml", "more: { key: more-key, limits: { reads: many } }")
        assert machine.run("systemctl reload push1st").returncode != 0
        machine.write("/etc/push1st/apps/more.yml", "more: { key: more-key, enable: false }")
        assert machine.run("systemctl kill -s HUP --kill-who=main push1st").returncode == 0
        wait_until(lambda: machine.run("curl -s http://127.0.0.1:6002/apps/more/channels").stdout.count("disabled"), "disabled")

        assert machine.run("systemctl is-active push1st").stdout == "active\n"
        assert machine.main == main, "the service was not restarted"
        machine.run("push1st publish -c /etc/push1st/server.yml --app shop private-c e 1")
        wait_until(lambda: "private-c  e  1" in machine.run("cat /received").stdout, "the client is still connected")
