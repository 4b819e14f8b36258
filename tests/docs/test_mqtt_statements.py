"""The page about the normative statements of MQTT is complete, the tests that it names exist, and its summary is correct."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "mqtt-statements.md").read_text()
SUMMARY = (ROOT / "docs" / "compatibility.md").read_text()
VERSIONS = {"MQTT": "MQTT 5.0", "MQTT3": "MQTT 3.1.1"}
"""the version of each prefix of a citation"""
_NUMBERS = re.compile(r"(\d+(?:\.\d+)+)(?:-\d+)(?:, -\d+)*")
_CITATION = re.compile(r"(MQTT3?)-([\d.]+-\d+(?:(?:, | to )-\d+)*)")


def numbers(text: str) -> Iterator[str]:
    """Yields the numbers of statements in a text: `3.3.1-4, -5` has 3.3.1-4 and 3.3.1-5."""
    for found in _NUMBERS.finditer(text):
        yield from (f"{found[1]}{last}" for last in re.findall(r"-\d+", found[0]))


def section(version: str) -> str:
    return PAGE.partition(f"\n## {version}\n")[2].partition("\n## ")[0]


def rows(version: str) -> list[list[str]]:
    """Returns the statement, the rule and the test of each row."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section(version).splitlines() if re.match(r"\| \d", line)
    ]


def listed(version: str) -> list[str]:
    """Returns the numbers of all statements of a version on the page, also of those that concern only clients."""
    lists = re.findall(r":\n((?:[\d., -]+\n)+)", section(version))
    return [*numbers(", ".join(first for first, *_ in rows(version))), *numbers(" ".join(lists).replace("\n", " "))]


def cited() -> Iterator[tuple[str, str, str]]:
    """Yields the prefix, the number and the file of each statement that the source cites."""
    for file in sorted((ROOT / "src").rglob("*")):
        if file.suffix in (".py", ".lua"):
            for citation in re.findall(r"\[(MQTT3?-[^\]]*)\]", file.read_text()):
                for prefix, text in _CITATION.findall(citation):
                    for number in numbers(text.replace(" to ", ", ")):
                        yield prefix, number, str(file.relative_to(ROOT))


def test_tests_named_by_the_page_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)
    files = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    missing = [(file, name) for file, name in named if not re.search(rf"^(async )?def {name}\(", files[file], re.MULTILINE)]
    assert len(named) > 300
    assert missing == [], "docs/mqtt-statements.md names tests that do not exist"


@pytest.mark.parametrize("version", VERSIONS.values())
def test_every_statement_has_a_test_or_is_not_applicable(version: str) -> None:
    without = [first for first, _, test in rows(version) if "::test_" not in test and not test.startswith("not applicable: ")]
    assert without == []


@pytest.mark.parametrize("version", VERSIONS.values())
def test_every_statement_is_on_the_page_once(version: str) -> None:
    total = re.search(rf"\[{re.escape(version)}\]\([^)]*\) has (\d+)", PAGE)
    assert total is not None
    found = Counter(listed(version))
    assert [number for number, count in found.items() if count > 1] == []
    assert len(found) == int(total[1])


def test_compatibility_page_counts_the_statements() -> None:
    table = SUMMARY.partition("\n## MQTT\n")[2].partition("\n## ")[0]
    summary = [[int(cell) for cell in re.findall(r"\| (\d+) (?=\|)", row)] for row in table.splitlines()]
    expected = []
    for version in VERSIONS.values():
        tests = [test for first, _, test in rows(version) for _ in numbers(first)]
        partly = sum("partly: " in test for test in tests)
        proven, total = sum("::test_" in test for test in tests), len(listed(version))
        expected.append((proven - partly, partly, len(tests) - proven, total - len(tests), total))
    assert list(zip(*filter(None, summary), strict=True)) == expected, "the table in docs/compatibility.md needs other numbers"


@pytest.mark.parametrize("prefix", VERSIONS)
def test_every_statement_that_the_source_cites_is_on_the_page(prefix: str) -> None:
    here = set(listed(VERSIONS[prefix]))
    citations = [(number, file) for one, number, file in cited() if one == prefix]
    assert len(citations) > 20
    assert [(number, file) for number, file in citations if number not in here] == [], "docs/mqtt-statements.md needs a row"
