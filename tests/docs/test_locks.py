"""The lock files agree with pyproject.toml and with each other, and name a hash for each package and no package index."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.locks import DEV, NODE, PLATFORMS, PYTHONS, RUNTIME, entries, pyproject, versions
from tests.docs.pages import ROOT


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
