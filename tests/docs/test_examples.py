"""The examples of the documentation, run page by page without changes."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, is_run, story
from tests.support.nodejs import node_program
from tests.support.process import program

NOT_RUN = re.compile(r"^\| \[?`?([\w./-]+\.md)`?\]?(?:\([^)]*\))? \| `(\w+)` \|", re.MULTILINE)


PROGRAMS = {"curl": "curl", "mosquitto": "mosquitto", "mosquitto_sub": "mosquitto-clients", "openssl": "openssl"}
"""programs that the examples need, in addition to Python and Node.js, with their packages"""


def words(page: Path) -> set[str]:
    """Returns the words of all commands of a page."""
    return {
        word for block in blocks(page) if block.language == "bash" and is_run(block) for word in re.findall(r"\w+", block.text)
    }


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))], ids=lambda page: page.name)
def test_examples_of_a_page_work(page: Path) -> None:
    for name in sorted(PROGRAMS.keys() & words(page)):
        program(name, PROGRAMS[name])
    if "node" in words(page) or any(block.says("browser") for block in blocks(page)):
        node_program()
    with story() as telling:
        for block in blocks(page):
            telling.do(block)


def test_every_example_that_is_not_run_is_listed_with_its_reason() -> None:
    """One table of docs/README.md lists them: page, language, reason."""
    listed = set(NOT_RUN.findall((ROOT / "docs" / "README.md").read_text()))
    there = {(page.name, block.language) for page in PAGES for block in blocks(page) if block.says("not-run")}
    assert listed == there


def headings(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    titles = (line.lstrip("#").strip().lower() for line in lines if re.match(r"#+ ", line))
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    dead = []
    for page in PAGES:
        text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
        for target, _, heading in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
            there = page.parent / target if target else page
            if ":" not in target and (not there.exists() or (heading and heading not in headings(there))):
                dead.append(f"{page.relative_to(ROOT)}: {target}#{heading}")
    assert dead == []
