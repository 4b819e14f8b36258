"""The examples of the book, done page by page as they stand."""

import re
from pathlib import Path

import pytest

from tests.clients.process import program
from tests.docs.pages import PAGES, ROOT, blocks, is_run, story

NOT_RUN = re.compile(r"^\| \[?`?([\w./-]+\.md)`?\]?(?:\([^)]*\))? \| `(\w+)` \|", re.MULTILINE)


PROGRAMS = {"curl", "openssl"}
"""what the examples need of the machine, beside Python and Node.js"""


def words(page: Path) -> set[str]:
    """What the commands of a page are made of."""
    return {
        word for block in blocks(page) if block.language == "bash" and is_run(block) for word in re.findall(r"\w+", block.text)
    }


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))], ids=lambda page: page.name)
def test_the_examples_of_a_page_do_what_it_says(page: Path) -> None:
    for name in sorted(PROGRAMS & words(page)):
        program(name)
    with story() as telling:
        for block in blocks(page):
            telling.do(block)


def test_every_example_that_is_not_run_is_listed_with_its_reason() -> None:
    """In one table of docs/README.md: page, language, why."""
    listed = set(NOT_RUN.findall((ROOT / "docs" / "README.md").read_text()))
    there = {(page.name, block.language) for page in PAGES for block in blocks(page) if block.says("not-run")}
    assert listed == there


def test_every_link_to_a_file_leads_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL))
        if not (page.parent / target).exists()
    ]
    assert dead == []
