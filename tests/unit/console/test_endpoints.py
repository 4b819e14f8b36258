"""The parameters of calls, and the decoding of paths and queries."""

import pytest

from push1st.console.endpoints import ConsoleCall, decoded, params_of
from push1st.errors import Refused


def call(**params: str) -> ConsoleCall:
    return ConsoleCall("GET", (), params, b"", "127.0.0.1")


def test_numbers_have_a_default_and_a_bound():
    assert call().number("limit", 50, 100) == 50
    assert call(limit="").number("limit", 50, 100) == 50
    assert call(limit="0").number("limit", 50, 100) == 0
    assert call(limit="100").number("limit", 50, 100) == 100


@pytest.mark.parametrize("text", ["101", "-1", "1.5", "x", "1e2", " 1", "\u0661", "9" * 5000])
def test_number_that_is_not_permitted_is_rejected(text):
    with pytest.raises(Refused, match="limit must be a whole number from 0 to 100"):
        call(limit=text).number("limit", 50, 100)


def test_texts_have_a_bound_in_bytes():
    assert call().text("prefix") == ""
    assert call(prefix="é" * 5).text("prefix", 10) == "é" * 5
    with pytest.raises(Refused, match="prefix must have at most 10 bytes"):
        call(prefix="é" * 6).text("prefix", 10)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("", True), ("0", False), ("false", False)])
def test_flags(text, value):
    assert call(behind=text).flag("behind") is value
    assert call().flag("behind") is False
    with pytest.raises(Refused, match="behind must be 1 or 0"):
        call(behind="yes").flag("behind")


def test_segments_lose_their_percent_encoding():
    assert decoded(["a%2Fb", "%C3%A9t%C3%A9", "%", "a+b"]) == ("a/b", "été", "%", "a+b")
    with pytest.raises(Refused, match="not UTF-8"):
        decoded(["%FF"])


def test_queries_have_a_bound():
    assert params_of("a=1&b=&a=2&c=%C3%A9+x") == {"a": "2", "b": "", "c": "é x"}
    with pytest.raises(Refused, match="at most 50 parameters"):
        params_of("&".join(f"a{one}=1" for one in range(51)))
