"""Logs of rejections contain no secret, even if an answer repeats a part of one."""

import re
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


def test_known_secrets_cost_nothing_and_new_secrets_are_masked_once_for_many_apps(lines, monkeypatch):
    log, compiled, compile = Refusals(), list[str](), re.compile

    def counted(text: str) -> re.Pattern[str]:
        compiled.append(text)
        return compile(text)

    monkeypatch.setattr(re, "compile", counted)
    log.enable(lambda: 0.0, ["first-secret", "second-secret"])
    for changed in ("first-secret", "third-secret", "fourth-secret"):
        log.mask(changed)
    log.log("request refused", 401, "no app first-secret", path="/app/fourth-secret")
    log.mask("third-secret")
    log.log("request refused", 401, "no app third-secret")
    assert [line["reason"] for line in lines] == [f"no app {MASK}"] * 2
    assert lines[0]["path"] == f"/app/{MASK}"
    assert len(compiled) == 1
