"""The bounds of the lists of the configuration screen."""

from push1st.console.configuration import MAX_CHARACTERS, MAX_TEXTS, bounded


def test_few_and_short_texts_are_shown_unchanged() -> None:
    texts = ["a warning", "x" * MAX_CHARACTERS]
    assert bounded(texts) == texts
    assert bounded([]) == []


def test_texts_of_thousands_of_apps_are_cut_and_counted() -> None:
    found = bounded([f"{'app, ' * 10_000}end {number}" for number in range(MAX_TEXTS + 7)])
    assert len(found) == MAX_TEXTS + 1
    assert found[0].startswith("app, app, ")
    assert found[0].endswith(" … app, app, end 0"[-15:])
    assert "app, … app, " in found[0], "cut between words"
    assert MAX_CHARACTERS - 20 < len(found[0]) <= MAX_CHARACTERS + len(" … ")
    assert found[-1] == "7 more: push1st check prints all of them"
