"""The lock files agree with pyproject.toml and with each other, and name a hash for each package and no package index."""

import re
import tomllib
from functools import cache
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.docs.pages import ROOT

RUNTIME, DEV, NODE = "requirements.lock", "requirements-dev.lock", "requirements-node.lock"
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")
PLATFORMS = ("linux", "darwin")


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def entries(name: str) -> list[str]:
    """Each package's entry, with its hashes."""
    lines = (line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def versions(name: str, python: str = PYTHONS[0], platform: str = "linux") -> dict[str, Version]:
    """The locked versions that are installed on a Python of a platform."""
    environment = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": platform,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    found: dict[str, Version] = {}
    for entry in entries(name):
        requirement = Requirement(entry.partition(" --hash")[0])
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (version,) = requirement.specifier
            assert version.operator == "=="
            found[canonicalize_name(requirement.name)] = Version(version.version)
    return found


@pytest.mark.parametrize("name", [RUNTIME, DEV, NODE])
def test_each_locked_package_has_hashes(name: str) -> None:
    assert [
        entry for entry in entries(name) if not re.fullmatch(r"[^ ]+==[^ ]+( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+ *", entry)
    ] == []


@pytest.mark.parametrize("name", [RUNTIME, DEV, NODE])
def test_a_lock_file_names_no_package_index_and_no_path(name: str) -> None:
    assert re.findall(r"(?m)://|^-|@ ", (ROOT / name).read_text()) == []


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_locked_at_an_allowed_version(python: str, platform: str) -> None:
    groups = pyproject()["dependency-groups"]
    needed = {
        RUNTIME: pyproject()["project"]["dependencies"],
        DEV: pyproject()["project"]["dependencies"] + groups["dev"],
        NODE: groups["node"],
    }
    for name, requirements in needed.items():
        locked = versions(name, python, platform)
        for requirement in map(Requirement, requirements):
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier, f"{requirement}: run make lock"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_server_is_tested_with_the_versions_that_it_is_installed_with(python: str) -> None:
    assert versions(RUNTIME, python).items() <= versions(DEV, python).items()


def test_the_python_versions_of_this_test_are_those_of_the_classifiers() -> None:
    found = re.findall(r"Python :: (3\.\d+)", "\n".join(pyproject()["project"]["classifiers"]))
    assert [python.rpartition(".")[0] for python in PYTHONS] == found
