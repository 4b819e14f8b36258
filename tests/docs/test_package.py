"""The package as users get it: a wheel, installed where this checkout is not on the path."""

import http.client
import os
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import push1st
from tests.docs.pages import ROOT
from tests.support.process import DEADLINE, free_ports, wait_until


def run(*command: str, cwd: Path) -> str:
    """Returns the output of a command, which runs without the environment of this test."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel without a network, with the build backend that `make install` has installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    run(sys.executable, *build, str(ROOT), cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a new environment with the wheel. It uses the libraries of this environment, which follow later on its path."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    install = (
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    run(sys.executable, *install, cwd=folder)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def addresses(folder: Path, **environment: str) -> list[str]:
    """Returns the project URLs in a wheel that is built with these variables."""
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", str(ROOT))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    subprocess.run(build, cwd=folder, env={**clean, **environment}, check=True, timeout=60)
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        lines = files.read(name).decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Project-URL")]


def test_package_has_the_urls_of_its_repository(tmp_path: Path) -> None:
    source = "https://git.example/shop/push1st"
    found = addresses(tmp_path, GITHUB_SERVER_URL="https://git.example", GITHUB_REPOSITORY="shop/push1st")
    assert f"Source, {source}" in found
    pages = [address.partition(f"{source}/blob/main/")[2] for address in found if "/blob/" in address]
    assert pages
    assert [page for page in pages if not (ROOT / page).exists()] == []


def test_a_package_that_is_built_elsewhere_has_no_addresses(tmp_path: Path) -> None:
    assert addresses(tmp_path) == []


def test_wheel_contains_only_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "push1st/py.typed" in names
    assert {"push1st/__main__.py", "push1st/openapi.yaml", "push1st/console/static/index.html"} <= set(names)
    pages = ROOT / "src" / "push1st" / "console" / "static"
    files = {f"push1st/{file.relative_to(ROOT / 'src' / 'push1st')}" for file in pages.rglob("*") if file.is_file()}
    assert files <= set(names), "the pages of the console, with the licences of their libraries"
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"push1st", f"push1st-{push1st.__version__}.dist-info"}


def test_the_wheel_runs_from_where_it_is_installed(installed: Path) -> None:
    where = run(str(installed / "bin" / "python"), "-c", "import push1st; print(push1st.__file__)", cwd=installed)
    assert Path(where.strip()).is_relative_to(installed)


@pytest.mark.parametrize("command", [["python", "-m", "push1st"], ["push1st"]], ids=" ".join)
def test_installed_program_runs_as_command_and_as_module(installed: Path, command: list[str]) -> None:
    said = run(str(installed / "bin" / command[0]), *command[1:], "version", cwd=installed)
    assert said.startswith(f"push1st {push1st.__version__} ")


def test_check_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("credentials: [ app.yml ]\n")
    (tmp_path / "app.yml").write_text("shop: { key: k, secret: 0123456789abcdef0123456789abcdef }\n")
    assert "app shop" in run(str(installed / "bin" / "push1st"), "check", "-c", "server.yml", cwd=tmp_path)


def test_serve_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    ws, api = free_ports(2)
    listen = {"PUSH1ST_SERVER_LISTEN": f"tcp://127.0.0.1:{ws}", "PUSH1ST_API_LISTEN": f"tcp://127.0.0.1:{api}"}
    process = subprocess.Popen(
        [str(installed / "bin" / "push1st"), "serve"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **listen},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ready(api), "the server of the wheel answers")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
