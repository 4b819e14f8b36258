"""The files in `.github` and the pre-commit configuration are valid, and agree with the Makefile, pyproject.toml and the lock."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.locks import DEV, versions
from tests.docs.pages import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
ECOSYSTEMS = {
    "pip": "pyproject.toml",
    "npm": "package-lock.json",
    "github-actions": ".github/workflows",
    "docker": "Containerfile",
}
"""the file that each ecosystem of Dependabot reads in its directory"""


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict), path
    return found


def jobs(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from read(path)["jobs"].items()


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for _, job in jobs(path):
        yield from job["steps"]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Path:
    found = request.param
    assert isinstance(found, Path)
    return found


def test_each_yaml_file_is_valid() -> None:
    files = [path for path in GITHUB.rglob("*") if path.suffix in (".yml", ".yaml")]
    assert len(files) > len(WORKFLOWS)
    for path in files:
        read(path)


def test_each_step_uses_an_action_or_calls_a_target_of_the_makefile(workflow: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for step in steps(workflow):
        assert len(step.keys() & {"uses", "run"}) == 1, step
        if "run" in step:
            program, target = step["run"].split()
            assert program == "make"
            assert target in targets, target


def test_each_action_has_a_version(workflow: Path) -> None:
    actions = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+(\.\d+\.\d+)?", action)] == []


def test_a_workflow_may_only_read_and_keeps_no_credentials(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    for name, job in jobs(workflow):
        assert "permissions" not in job, name
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_each_job_has_a_deadline_and_a_machine_of_a_fixed_version(workflow: Path) -> None:
    for name, job in jobs(workflow):
        assert job["timeout-minutes"] > 0, name
        assert re.fullmatch(r"(ubuntu|macos)-[\d.]+", job["runs-on"]), name


def test_the_tests_run_on_each_python_version_of_the_classifiers() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    supported = [line.rpartition(" ")[2] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)]
    test = dict(jobs(GITHUB / "workflows" / "test.yml"))["test"]
    assert test["strategy"]["matrix"]["python"] == supported
    for path in WORKFLOWS:
        for step in steps(path):
            version = step.get("with", {}).get("python-version", "${{ matrix.python }}")
            assert version in (*supported, "${{ matrix.python }}")


def test_each_matrix_variable_is_defined(workflow: Path) -> None:
    for name, job in jobs(workflow):
        used = set(re.findall(r"matrix\.(\w+)", yaml.safe_dump(job["steps"])))
        assert used == set(job.get("strategy", {}).get("matrix", {})), name


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_has_what_github_requires(path: Path) -> None:
    form = read(path)
    assert form.keys() <= {"name", "description", "title", "labels", "body"}
    assert form["name"]
    assert form["description"]
    identities = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(identities)) == len(identities)
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        assert part["type"] in ("markdown", "input", "textarea")
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]


def test_dependabot_directories_have_files_to_update() -> None:
    config = read(GITHUB / "dependabot.yml")
    assert config["version"] == 2
    for update in config["updates"]:
        folder = ROOT / update["directory"].strip("/")
        assert (folder / ECOSYSTEMS[update["package-ecosystem"]]).exists(), update
        assert update["schedule"]["interval"] in ("weekly", "monthly")


def test_pre_commit_uses_the_locked_versions_of_the_tools() -> None:
    locked = versions(DEV)
    found = {}
    for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]:
        name = repository["repo"].rpartition("/")[2].removesuffix("-pre-commit")
        found[name] = repository["rev"]
    assert found == {name: f"v{locked[name]}" for name in ("ruff", "codespell")}
