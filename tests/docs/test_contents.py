"""Checks that pages contain texts that users look for."""

import re

from tests.docs.pages import ROOT, blocks, is_run

DOCS = ROOT / "docs"


def section(page: str, title: str) -> str:
    text = (DOCS / page).read_text()
    assert f"\n## {title}\n" in text, f"{page} has no section {title!r}"
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[str]:
    """Returns the rows of all tables in a text, without their heads."""
    tables = re.findall(r"^\|[ :|-]+\|\n((?:\|.*\n)*)", f"{text}\n", re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


def test_each_failure_has_tests_that_exist_and_each_failure_of_the_broker_has_a_row() -> None:
    failures = rows(section("scaling.md", "What happens when … dies"))
    folders = [ROOT / "tests" / name for name in ("clients", "cluster", "contract", "unit/brokers/redis")]
    sources = "".join(file.read_text() for folder in folders for file in folder.glob("test_*.py"))
    tests = set(re.findall(r"def (test_\w+)", sources))
    without = [row for row in failures if not tests.intersection(re.findall(r"`(test_\w+)`", row))]
    named = set(re.findall(r"`(test_\w+)`", "".join(failures)))
    assert without == []
    assert named - tests == set()
    assert {name for name in tests if name.startswith("test_a_broker_that_")} - named == set()
    assert any("`MISCONF`" in row for row in failures)


def test_the_order_of_message_ids_is_promised_for_one_worker_only() -> None:
    """`test_messages_have_one_order_on_all_nodes_even_if_a_clock_goes_back` checks the same in a cluster."""
    (promise,) = [row for row in rows((DOCS / "protocols.md").read_text()) if row.startswith("| `#msg-id` |")]
    assert "a message of one worker" in promise
    assert "clock" in promise
    assert "smaller id than an earlier message of another worker" in promise


def test_differences_from_the_original_are_rows_of_a_table() -> None:
    differences = (
        "`enbale`",
        "`enable: false` of an app",
        "| `whitelist` |",
        "`server.app-path`",
        "push: {",
        "| `mqtt` in `proto` |",
        "raw clients without `Origin`",
        "the answer to a published event is `{}`",
        "percent-encoding in paths",
        "`/smpp/…`",
        "an error frame, and the connection stays open",
        "percent-encoding in channels",
        "`data` of a frame",
        "| `#msg-id`",
        "without a `user_id`",
        "`data` of a `join`",
        "cluster.family.adapter: k8s",
        "| `cluster.module` |",
    )
    table = "\n".join(rows(section("moving-from-push1st.md", "What is different")))
    assert [one for one in differences if one not in table] == []


def test_missing_features_of_the_original_are_listed_and_mqtt_is_not_one() -> None:
    missing = section("moving-from-push1st.md", "What is not here")
    for one in ("SMPP gateway", "cluster.module"):
        assert one in missing
    assert "MQTT" not in missing
    assert "/opt/naveksoft/push1st" in (DOCS / "moving-from-push1st.md").read_text()


def test_the_browser_page_runs_auth_endpoints_of_four_frameworks() -> None:
    text = section("howto-browser.md", "Private and presence channels")
    assert [one for one in ("Flask", "FastAPI", "Django", "Express") if one not in text] == []
    ran = [block.text for block in blocks(DOCS / "howto-browser.md") if is_run(block)]
    assert [one for one in ("flask", "fastapi", "django", "express") if not any(f"{one}_auth" in text for text in ran)] == []
    assert any("Pusher.logToConsole = true" in text for text in ran)


def test_browser_page_lists_possible_faults() -> None:
    causes = "".join(rows(section("howto-browser.md", "When it does not work")))
    for seen in ("`unavailable`", "4001", "4009", "`pusher:subscription_error`"):
        assert seen in causes
