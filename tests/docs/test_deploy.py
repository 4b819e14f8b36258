"""The files of deploy/, as far as they can be tested without systemd as the first process and without Docker."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from push1st.config.load import APP_VARIABLES, ROOT_VARIABLES, demo, load
from tests.docs.pages import ROOT
from tests.support.process import ServerProcess, program, running

DEPLOY = ROOT / "deploy"
EXPOSURE = 20
"""maximum exposure that `systemd-analyze security` may report: 2.0 of 10"""


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Containerfile, each with its words."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], " ".join(line.split(None, 1)[1].split())) for line in lines if line.strip()]


def of(name: str) -> list[str]:
    return [words for instruction, words in instructions() if instruction == name]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    begin = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[begin:]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running({"server": {"drain": 0}}) as process:
        yield process


# -- systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Returns the unit with commands of this machine, because `verify` checks that they exist."""
    program("systemd-analyze", "systemd")
    text = (DEPLOY / "push1st.service").read_text()
    assert "/opt/push1st/bin/push1st" in text
    file = tmp_path / "push1st.service"
    file.write_text(text.replace("/opt/push1st/bin/push1st", str(Path(sys.prefix) / "bin" / "push1st")))
    return file


def test_systemd_accepts_the_unit_without_warnings(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=30)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "push1st" in line]
    assert ours == []


def test_the_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if "--offline" in done.stderr:
        pytest.skip("systemd-analyze is older than 250")
    assert done.returncode == 0, done.stdout


def test_the_unit_gives_the_server_more_time_than_it_takes_to_stop() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "push1st.service").read_text(), re.MULTILINE)
    assert int(seconds) > demo({}).server.drain + 5


def commands(name: str, config: Path) -> list[list[str]]:
    """Returns the unit's commands of one kind, with the program and a configuration of this test."""
    here = {"/opt/push1st/bin/push1st": str(Path(sys.prefix) / "bin" / "push1st"), "/etc/push1st/server.yml": str(config)}
    found = re.findall(rf"^{name}=-?(.*)$", (DEPLOY / "push1st.service").read_text(), re.MULTILINE)
    return [[here.get(word, word) for word in shlex.split(line)] for line in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_by_systemd_waits_and_fails_when_nothing_was_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with running({"server": {"drain": 0, "workers": workers}}) as server:
        (reload,) = commands("ExecReload", server.folder / "server.yml")
        (server.folder / "apps" / "more.yml").write_text("more: { key: more-key, secret: s }\n")
        done = subprocess.run(reload, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        assert "app more: added" in done.stdout
        assert server.get("/apps/more/channels").status == 200, "it waits for all workers"
        (server.folder / "apps" / "more.yml").write_text("more: {}\n")
        assert subprocess.run(reload, capture_output=True, timeout=30).returncode == 1


SANDBOX = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
shift
exec "$@"
"""
"""runs a command in a mount namespace with a read-only folder, like `ProtectSystem=strict`"""


@pytest.mark.parametrize("folder", ["elsewhere", "state"])
def test_the_check_before_the_start_finds_a_folder_that_the_service_may_not_write_to(tmp_path: Path, folder: str) -> None:
    """The check accepts a folder that the unit has made."""
    text = (DEPLOY / "push1st.service").read_text()
    assert re.search(r"^StateDirectory=push1st$", text, re.MULTILINE)
    for name in ("elsewhere", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "server.yml").write_text(
        f"hooks: {{ folder: {tmp_path}/{folder}/hooks }}\napi: {{ listen: false }}\ncredentials: [ apps.yml ]\n"
    )
    (tmp_path / "apps.yml").write_text("shop: { key: shop-key, secret: a-long-random-secret-of-at-least-32-bytes }\n")
    (command,) = commands("ExecStartPre", tmp_path / "server.yml")
    sandbox = ["unshare", "--mount", "sh", "-c", SANDBOX, "sh", str(tmp_path / "elsewhere")]
    if subprocess.run([*sandbox, "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made here")
    done = subprocess.run([*sandbox, *command], capture_output=True, text=True, timeout=30)
    if folder == "state":
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "state" / "hooks").exists(), "a check makes nothing"
    else:
        assert done.returncode == 1
        assert f"hooks.folder: cannot keep hook events in {tmp_path}/elsewhere/hooks: Read-only file system" in done.stderr


def test_the_configuration_of_deploy_is_good(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "shop.yml").write_text("shop: { key: k, secret: 0123456789abcdef0123456789abcdef }\n")
    (tmp_path / "server.yml").write_text((DEPLOY / "server.yml").read_text())
    config = load(tmp_path / "server.yml", {})
    assert config.warnings == ()
    assert all(listen.host == "127.0.0.1" or listen.scheme == "unix" for listen in (*config.server.listen, *config.api.listen))


# -- the proxies


@pytest.mark.parametrize(
    ("name", "pattern"), [("nginx.conf", r"^ +keepalive_timeout (\d+)s;"), ("Caddyfile", r"^\t+keepalive (\d+)s")]
)
def test_a_proxy_ends_its_idle_connections_before_the_server_does(name: str, pattern: str) -> None:
    (seconds,) = re.findall(pattern, (DEPLOY / name).read_text(), re.MULTILINE)
    assert int(seconds) + 2 < demo({}).api.keep_alive_timeout


# -- the container


def test_the_container_does_not_run_as_root() -> None:
    (user,) = [words for name, words in last_stage() if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that Kubernetes can tell that it is not root"


def test_container_uses_known_images_and_contains_no_build_tools() -> None:
    images = of("FROM")
    assert len(images) == 2
    assert len({image.split()[0] for image in images}) == 1, "the same Python in both, since a venv is copied"
    assert all(re.match(r"python:3\.\d+-slim( |$)", image) for image in images)
    assert of("ADD") == []


def test_files_copied_by_the_container_exist() -> None:
    for words in of("COPY"):
        *sources, _ = words.split()
        if not sources[0].startswith("--from"):
            assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_container_installs_wheels_of_the_locked_versions() -> None:
    (commands,) = (words for words in of("RUN") if "pip install" in words)
    locked, package = (words for words in commands.split("&&") if "pip install" in words)
    assert "--only-binary :all:" in locked
    assert "--require-hashes -r requirements.lock" in locked
    assert "--no-deps ." in package


def test_the_container_has_a_folder_for_hook_events_that_its_user_may_write_to() -> None:
    (user,) = [words for name, words in last_stage() if name == "USER"]
    owner, group = user.split(":")
    assert f"install -d -o {owner} -g {group} -m 0700 /var/lib/push1st" in of("RUN")


def test_the_commands_of_the_container_need_no_shell() -> None:
    assert json.loads(*of("ENTRYPOINT")) + json.loads(*of("CMD")) == ["push1st", "serve"]


def test_health_check_distinguishes_a_running_server(server: ServerProcess) -> None:
    (words,) = of("HEALTHCHECK")
    program, *arguments = json.loads(words.partition("CMD ")[2])
    assert program == "python"

    def check(port: int) -> int:
        here = [argument.replace("6001", str(port)) for argument in arguments]
        return subprocess.run([sys.executable, *here], capture_output=True, timeout=10).returncode

    assert check(server.ws_port) == 0
    assert check(1) == 1


def test_compose_sets_known_variables_that_configure_a_server() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["push1st"]
    given = {name: "x" * 32 if value.startswith("${") else value for name, value in service["environment"].items()}
    assert set(given) <= {"PUSH1ST_APP_ID", *ROOT_VARIABLES, *APP_VARIABLES}
    config = demo(given)
    assert [app.id for app in config.apps] == ["shop"]
    assert not config.demo


def test_compose_builds_the_containerfile_and_gives_it_time_to_stop() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["push1st"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Containerfile")
    assert int(service["stop_grace_period"].removesuffix("s")) > demo({}).server.drain + 5


def test_shell_commands_of_the_container_are_well_formed() -> None:
    for words in of("RUN"):
        assert shlex.split(words)
        assert subprocess.run(["bash", "-n", "-c", words], timeout=10).returncode == 0
