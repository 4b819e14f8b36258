"""The first screen of README.md: its required contents, and the sources of its figures."""

import re

from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()


def section(title: str) -> str:
    assert f"\n## {title}\n" in README, title
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_readme_begins_with_a_sentence_a_picture_and_three_ways_to_start() -> None:
    head = README.partition("\n## ")[0]
    (sentence,) = re.findall(r"\n\n(Push1st is [^!]*?\.)\n", head)
    assert len(re.findall(r"\.(?:\s|$)", sentence)) == 1
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", head)
    assert (ROOT / picture).is_file()
    ways = section("Start it")
    assert ways.count("```bash") == 3
    for way in ("make serve", "pip install .", "docker run"):
        assert way in ways


def test_each_of_the_five_numbers_is_in_the_measurements() -> None:
    rows = re.findall(r"^\| [^|-][^|]*\| *([\d,.]+)[^|]*\|([^|]*)\|$", section("Five numbers"), re.MULTILINE)
    assert len(rows) == 5
    figures = [figure for first, others in rows for figure in (first, *re.findall(r"[\d,.]*\d", others))]
    assert [figure for figure in figures if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,]|\.\d)", PERFORMANCE)] == []


def test_the_comparison_has_sources_and_missing_features_are_listed() -> None:
    others = section("Comparison with other servers")
    assert len(re.findall(r"\]\(https://", others)) >= 4
    assert section("Missing features").count("\n- ") >= 3
    assert "SECURITY.md" in section("Where to ask")
