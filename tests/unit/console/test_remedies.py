"""The remedies of errors, from docs/errors.md."""

import json
import re
from importlib.resources import files
from itertools import product

import pytest

from push1st.console.remedies import Remedies, fits


@pytest.fixture(scope="module")
def remedies() -> Remedies:
    return Remedies()


@pytest.mark.parametrize(
    ("message", "anchor", "remedy"),
    [
        (
            "unknown event 'x': clients may send pusher: commands and client- events",
            "pusher-clients",
            "Begin the names of client",
        ),
        ("this app has no presence channels", "pusher-clients", "Add the type to the app's channels"),
        ("there is no app x\ny", "who-is-calling", "Put the app's id into the path"),
        ("this client does not read its messages", "raw-websocket-clients", "If only a few"),
        ("App key 'x' does not exist", "connecting", "Check the key in the client"),
    ],
)
def test_message_has_the_remedy_of_its_row(remedies: Remedies, message: str, anchor: str, remedy: str) -> None:
    found = remedies.answered("", "request refused", 400, message)
    assert found.link.startswith(f"docs/errors.md#{anchor}:~:text=")
    assert found.remedy.startswith(remedy)
    assert found.code == 400


def test_no_remedy_only_refers_to_another_place() -> None:
    rows: list[list[str]] = json.loads((files("push1st.console") / "remedies.json").read_text())
    assert [row for row in rows if re.search(r"(^|[.;] )see\b", row[2], re.IGNORECASE)] == []


def test_link_quotes_the_longest_part_of_the_message(remedies: Remedies) -> None:
    found = remedies.answered("", "", 403, "a connection may have 5 subscriptions")
    assert found.link.endswith(":~:text=a%20connection%20may%20have")


def test_message_of_a_backend_has_the_remedy_of_its_code(remedies: Remedies) -> None:
    found = remedies.answered("", "connection closed", 4009, "not today")
    assert (found.code, found.link) == (4009, "docs/errors.md#close-codes:~:text=4009")
    assert "origins" in found.remedy


@pytest.mark.parametrize(
    ("protocol", "event", "code", "sent"),
    [
        ("pusher", "command refused", 400, 4300),
        ("pusher", "command refused", 429, 4301),
        ("pusher-xhr", "command refused", 403, 4300),
        ("pusher", "sign-in refused", 401, 0),
        ("pusher", "subscription refused", 401, 401),
        ("pusher", "command refused", 4444, 4444),
        ("websocket", "command refused", 403, 403),
        ("mqtt5", "message refused", 135, 135),
    ],
)
def test_code_is_the_one_that_the_client_received(remedies: Remedies, protocol: str, event: str, code: int, sent: int) -> None:
    assert remedies.answered(protocol, event, code, "unheard of").code == sent


@pytest.mark.parametrize("pattern", ["…", "a…", "…a", "a…a", "a…b…a", "…ab…", "…a…b…", "ab…ba", "…a…a…", "aa……a"])
def test_pattern_fits_the_same_texts_as_a_regular_expression(pattern: str) -> None:
    expression = re.compile(".*".join(map(re.escape, pattern.split("…"))), re.DOTALL)
    texts = ("".join(one) for length in range(8) for one in product("ab", repeat=length))
    assert [text for text in texts if fits(pattern, text) != bool(expression.fullmatch(text))] == []


def test_message_that_almost_fits_at_many_places_has_no_remedy(remedies: Remedies) -> None:
    """With backtracking, this message of a client would need the square of its length."""
    hostile = " : a key has 1 to " * 50_000
    assert remedies.answered("", "", 0, hostile).remedy == ""
