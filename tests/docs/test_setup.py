"""`make test` on a minimal machine: Node.js is installed from a wheel, and missing programs are listed once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

BASE = (
    "sh",
    "bash",
    "env",
    "make",
    "git",
    "sed",
    "grep",
    "cat",
    "id",
    "mkdir",
    "rm",
    "ln",
    "chmod",
    "touch",
    "printf",
    "uname",
    "dirname",
)
"""programs of the smallest machine, in addition to Python"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Makes the environment of a machine without Node.js, a package manager, or any other program of `tests/programs.sh`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in BASE:
        (folder / name).symlink_to(str(shutil.which(name)))
    (folder / "python3").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    registries = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "NODE_EXTRA_CA", "npm_config"))
    }
    return {"PATH": str(folder), "HOME": str(tmp_path), **registries}


def sought(environment: dict[str, str], folder: Path) -> str:
    """Returns the output of `tests/programs.sh` in a checkout whose `.venv` has this Python, without a registry."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    shutil.copy(ROOT / "requirements-node.lock", folder)
    script = str(ROOT / "tests" / "programs.sh")
    environment = {**environment, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run(["sh", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_missing_programs_are_listed_once_with_the_tests_that_need_them(bare: dict[str, str], tmp_path: Path) -> None:
    said = sought(bare, tmp_path / "checkout")
    listed = [line.split(":")[0].strip() for line in said.splitlines() if line.startswith("  ")]
    expected = {"node", "curl", "openssl", "ps", "caddy", "systemd-analyze", "mosquitto_sub", "promtool", "chromium", "javac"}
    assert set(listed) - {"nginx", "mosquitto"} == expected
    assert len(set(listed)) == len(listed)
    assert all(": tests/" in line for line in said.splitlines() if line.startswith("  "))


def test_every_test_in_the_list_of_skipped_tests_exists() -> None:
    text = (ROOT / "tests" / "programs.sh").read_text().partition("NEEDED='")[2].partition("'")[0]
    named = {word.strip(",;:") for word in text.split() if word.startswith("tests/")}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_make_test_runs_pusher_js_on_a_machine_without_node(bare: dict[str, str], tmp_path: Path) -> None:
    """The test clones the commits of this checkout on the minimal machine; it needs the package registries."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = ["make", "test", "ARGS=-n 0 tests/clients/test_pusher_js.py"]
    done = subprocess.run(command, cwd=clone, env=bare, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no Node.js 20.19 or newer with npm is here" in done.stdout
    assert " skipped" not in done.stdout
