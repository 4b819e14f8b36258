"""Installs the programs of the bench into `bench/.build/`: the load generator, the peers, and a fast Python.

The system remains unchanged, and no step needs privileges. A program that cannot be installed raises `CannotRun`.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / ".build"
NODE = BUILD / "node"
NCHAN = BUILD / "nchan"
NCHAN_MODULE = "usr/lib/nginx/modules/ngx_nchan_module.so"
MOSQUITTO = BUILD / "mosquitto"
MOSQUITTO_LIBRARIES = ("libcjson1", "libdlt2", "libwrap0", "libmosquitto1")
"""packages that mosquitto needs, and that a system without mosquitto often lacks"""


class CannotRun(Exception):
    """A peer could not be installed, or did not start; the text says why."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Returns the output of a command that must succeed within five minutes."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CannotRun(f"{' '.join(map(str, command[:3]))}: {lines[-1] if lines else done.returncode}")
    return done.stdout + done.stderr


def compiled(source: Path) -> Path:
    """Returns the path of a C program of the bench, compiled again if its source has changed."""
    program = BUILD / source.stem
    BUILD.mkdir(exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        run("cc", "-O2", "-Wall", "-Wextra", "-o", program, source)
    return program


def node_package(name: str) -> str:
    """Installs the peers from npm, once; returns the version of one of them."""
    manifest = HERE / "peers" / "package.json"
    wanted = json.loads(manifest.read_text())
    stamp = NODE / "installed.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != wanted:
        shutil.rmtree(NODE, ignore_errors=True)
        NODE.mkdir(parents=True)
        shutil.copy(manifest, NODE)
        install = ("npm", "install", "--ignore-scripts", "--no-fund", "--no-audit", "--no-package-lock", "--loglevel=error")
        print("bench: installing soketi and uWebSockets.js from npm into bench/.build (once, about 450 MB)", file=sys.stderr)
        try:
            run(*install, cwd=NODE)
        except CannotRun:  # the yardstick alone, rather than nothing
            del wanted["dependencies"]["@soketi/soketi"]
            (NODE / "package.json").write_text(json.dumps(wanted))
            run(*install, cwd=NODE)
        stamp.write_text(manifest.read_text())
    installed = NODE / "node_modules" / name / "package.json"
    if not installed.exists():
        raise CannotRun(f"npm did not install {name}")
    return str(json.loads(installed.read_text())["version"])


def unpack(folder: Path, *packages: str) -> None:
    """Fetches packages of Debian into a folder, and unpacks their files into its subfolder `root`."""
    if not shutil.which("apt-get"):
        raise CannotRun(f"apt-get: not found (the bench takes {packages[-1]} from Debian)")
    print(f"bench: fetching {', '.join(packages)} from Debian into bench/.build (once, 1 MB)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download = ("apt-get", "download", *packages)
    try:
        run(*download, cwd=folder)
    except CannotRun:
        if os.geteuid():
            raise
        run("apt-get", "update")
        run(*download, cwd=folder)
    for package in folder.glob("*.deb"):
        run("dpkg-deb", "-x", package, folder / "root")


def mosquitto() -> tuple[Path, Path]:
    """Unpacks mosquitto and its libraries from Debian's packages, once; returns the program and the folder of its libraries."""
    program = MOSQUITTO / "root/usr/sbin/mosquitto"
    if not program.exists():
        unpack(MOSQUITTO, *MOSQUITTO_LIBRARIES, "mosquitto")
    if not program.exists():
        raise CannotRun("Debian's mosquitto package holds no /usr/sbin/mosquitto")
    for library in MOSQUITTO.glob("root/usr/lib/*/libcjson.so.1"):
        return program, library.parent
    raise CannotRun("Debian's libcjson1 package holds no libcjson.so.1")


def nginx() -> Path:
    """Unpacks nginx and its nchan module from Debian's packages, once."""
    program = NCHAN / "root/usr/sbin/nginx"
    if program.exists():
        return program
    unpack(NCHAN, "nginx", "libnginx-mod-nchan")
    if not program.exists():
        raise CannotRun("Debian's nginx package holds no /usr/sbin/nginx")
    # nchan wants this folder, whatever the configuration says, and only an installed nginx has it. In our own copy a name of the
    # same length stands there, which nginx takes as relative to the folder it is started with.
    module = NCHAN / "root" / NCHAN_MODULE
    module.write_bytes(module.read_bytes().replace(b"/var/lib/nginx/body", b"bench-body-temp-dir"))
    return program


SPEED = """
import sys, timeit
def turn(n, d={}):
    for i in range(n):
        d[i % 64] = (n, i)
print(min(timeit.repeat(lambda: turn(1000), number=200, repeat=9)) if sys.version_info >= (3, 11) else 9)
"""


@cache
def interpreter() -> tuple[str, str]:
    """The Python that this server runs on, and what to say of it: the project's own or, where the system's is much faster, that.

    Version managers build without profile-guided optimisation, distributions and container images with it: that makes
    a quarter. The system's gets an environment of its own here, once.
    """
    own = HERE.parent / ".venv/bin/python"
    python = str(own) if own.exists() else sys.executable
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if system is None or float(run(system, "-c", SPEED)) > 0.9 * float(run(python, "-c", SPEED)):
        return python, ""
    made, lock = BUILD / "python/bin/python", HERE.parent / "requirements.lock"
    installed = BUILD / "python/requirements.lock"
    if not installed.exists() or installed.read_text() != lock.read_text():
        print(f"bench: {system} is much faster than {python}, so bench/.build/python is made with it", file=sys.stderr)
        run(system, "-m", "venv", "--without-pip", "--clear", made.parent.parent)
        run(python, "-m", "pip", "--python", made, "install", "--quiet", "--no-deps", "--require-hashes", "-r", lock)
        shutil.copy(lock, installed)
    return str(made), ", the system's"
