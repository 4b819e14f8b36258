"""Logs of rejections contain no secret, even if an answer repeats a part of one."""

from typing import Any

import pytest

from push1st import refusals
from push1st.logs import MASK
from push1st.refusals import Refusals


@pytest.fixture
def lines(monkeypatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(refusals.log, "debug", lambda event, **fields: found.append({"event": event} | fields), raising=False)
    return found


def test_a_long_secret_is_masked_where_an_answer_cuts_it(lines):
    short, long = "secret-of-32-bytes-0123456789abcd", "another-secret-" * 9
    log = Refusals()
    log.enable(lambda: 0.0, [short, long, long[:40] + "-and-its-sibling" * 4])
    for secret in (short, long):
        log.log("handshake refused", 4001, f"App key {secret[:64]} does not exist", path=f"/app/{secret}/x", key=secret)
    expected = {"reason": f"App key {MASK} does not exist", "path": f"/app/{MASK}/x", "key": MASK}
    assert [{name: line[name] for name in expected} for line in lines] == [expected, expected]


def test_secrets_of_a_reload_are_masked_too(lines):
    log = Refusals()
    log.enable(lambda: 0.0, ["first-secret", "second-secret"])
    for changed in ("first-secret", "third-secret", "abc", "fourth-secret"):
        log.mask(changed)
    log.log("request refused", 401, "no app first-secret", path="/app/fourth-secret")
    log.mask("third-secret")
    log.log("request refused", 401, "no app third-secret, xabcabc and second-secre")
    assert [line["reason"] for line in lines] == [f"no app {MASK}", f"no app {MASK}, x{MASK}{MASK} and second-secre"]
    assert lines[0]["path"] == f"/app/{MASK}"


def test_the_longest_of_several_secrets_is_masked(lines):
    log = Refusals()
    log.enable(lambda: 0.0, ["secret", "secret-of-the-app", "secrets"])
    log.log("request refused", 401, "secret-of-the-app secret-of secrets")
    assert lines[0]["reason"] == f"{MASK} {MASK}-of {MASK}"
