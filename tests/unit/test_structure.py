"""The source stays readable: one class for each name, and no class or file that is several things. Tests share helpers only."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import push1st

PACKAGE = Path(push1st.__file__).parent
TESTS = Path(__file__).parent.parent
MAX_METHODS = 25
MAX_LINES = 500
TABLES = {"config/tables.py"}
"""files that are one long table"""


def files() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each source file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path.read_text()


@functools.cache
def classes() -> tuple[tuple[str, ast.ClassDef], ...]:
    """Returns each class with the name of its file."""
    trees = ((name, ast.parse(text)) for name, text in files())
    return tuple((name, node) for name, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def test_no_class_name_stands_twice() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for file, node in classes():
        found[node.name].append(file)
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_class_has_too_many_methods() -> None:
    counts = {
        f"{file}: {node.name}": sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
        for file, node in classes()
    }
    assert {name: count for name, count in counts.items() if count > MAX_METHODS} == {}


def test_no_source_file_is_too_long() -> None:
    lengths = {file: text.count("\n") for file, text in files() if file not in TABLES}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_test_module_is_imported() -> None:
    found = {
        str(path.relative_to(TESTS)): re.findall(r"(?m)^ *(?:from|import) tests[.\w]*\.(?:test_\w+|conftest)\b", path.read_text())
        for path in TESTS.rglob("*.py")
        if "node_modules" not in path.parts
    }
    assert {file: imports for file, imports in found.items() if imports} == {}


def test_unit_tests_have_the_folders_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS / "unit") for path in (TESTS / "unit").rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()] == []


def test_timeouts_are_those_that_coroutines_without_a_task_may_not_use() -> None:
    found = {file for file, text in files() if re.search(r"\basyncio\.timeout(_at)?\(", text)}
    assert found == {"eager.py"}
