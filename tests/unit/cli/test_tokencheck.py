"""The verdict of `push1st token check` on access tokens, part by part."""

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st import auth
from push1st.cli import main
from push1st.cli.tokencheck import Circumstances, TokenReport, report
from push1st.config.model import AppConfig, Authorize
from push1st.errors import Refused

NOW = 1_800_000_000
SECRET = "canary-secret-of-the-shop-with-enough-bytes"
OTHER = "canary-secret-of-the-news-with-enough-bytes"
SHOP = AppConfig(id="shop", key="shop-key", secret=SECRET, origins=("https://shop.example", "https://two.example"))
NEWS = AppConfig(id="news", key="news-key", secret=OTHER)
CLAIMS: dict[str, Any] = {"app": "shop", "channel": ["private-a", "presence-*"], "exp": NOW + 60, "origin": "*"}


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Returns a token; a claim with the value `...` is left out."""
    given = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return jwt.encode(given, secret.ljust(32, "\0"), algorithm=algorithm)  # HMAC appends the same zeros


def check(token: str, app: AppConfig = SHOP, channel: str | None = None, origin: str | None = None) -> TokenReport:
    return report(token, [app, NEWS], Circumstances(NOW, channel, origin))


def wrong(found: TokenReport) -> dict[str, str]:
    """Returns the texts of the parts that the server would reject."""
    assert found.accepted is all(one.passed for one in found.checks)
    return {one.part: one.text for one in found.checks if not one.passed}


def test_a_good_token_is_accepted_with_its_parts() -> None:
    found = check(token(sub="kitchen"), channel="presence-hall", origin="https://shop.example")
    assert found.accepted
    assert {one.part: one.text for one in found.checks} == {
        "app": "shop",
        "signature": "made with the secret of app shop",
        "exp": "expires 2027-01-15 08:01:00 UTC, in 60 seconds",
        "channel": "allows presence-hall",
        "origin": "any",
        "user": "kitchen (for MQTT clients)",
    }


@pytest.mark.parametrize(
    ("claims", "part", "text"),
    [
        ({"app": ...}, "app", "missing"),
        ({"app": 7}, "app", "not a text"),
        ({"app": "shop-key"}, "app", "shop-key (the app's key), but the app's id is shop"),
        ({"app": "news"}, "app", "news, but the app's id is shop"),
        ({"secret": OTHER}, "signature", "made with the secret of app news: sign the token with the secret of app shop"),
        ({"secret": "shop-key"}, "signature", "made with the app's key: sign the token with the app's secret"),
        ({"secret": "x" * 32}, "signature", "not made with the secret of app shop"),
        ({"algorithm": "HS512", "secret": SECRET * 2}, "signature", "made with HS512: sign the token with HS256"),
        ({"exp": NOW}, "exp", "expired 2027-01-15 08:00:00 UTC, 0 seconds ago: make a new token"),
        ({"exp": NOW - 3 * 3600}, "exp", "3 hours ago"),
        ({"exp": 10**18}, "", ""),
        ({"exp": "soon"}, "exp", "not a number"),
        ({"exp": ...}, "", ""),
        ({"nbf": NOW + 300}, "nbf", "in 5 minutes: wait, or compare the clocks"),
        ({"nbf": NOW}, "", ""),
        ({"channel": ...}, "channel", "missing"),
        ({"channel": [1]}, "channel", "neither a text nor a list of texts"),
        ({"origin": ""}, "origin", "not a text"),
        ({"sub": "a\n"}, "user", "MQTT clients with this token are rejected"),
        ({"sub": 7}, "", ""),
    ],
)
def test_each_wrong_part_is_named_with_a_remedy(claims: dict[str, Any], part: str, text: str) -> None:
    found = wrong(check(token(**claims)))
    assert list(found) == ([part] if part else [])
    assert text in found.get(part, "")


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ("private-b", "allows private-a, presence-*, but not private-b"),
        ("private-ab", "but not private-ab"),
        ("public-hall", ""),
        ("presence-x", ""),
        ("a\n", "control characters"),
    ],
)
def test_a_channel_that_the_token_does_not_allow_is_named(channel: str, text: str) -> None:
    found = wrong(check(token(), channel=channel))
    assert text in found.get("channel", "")
    assert bool(found) is bool(text)


def test_a_type_of_channels_that_the_app_does_not_have_is_named() -> None:
    public = AppConfig(id="shop", key="shop-key", secret=SECRET, channels=frozenset({"public"}))
    assert "app shop has no private channels" in wrong(check(token(), public, channel="private-a"))["channel"]


def test_a_backend_that_decides_about_a_channel_needs_no_token() -> None:
    decided = AppConfig(id="shop", key="k", secret=SECRET, authorize=(Authorize(url="py://a:b", on=frozenset({"subscribe"})),))
    assert wrong(check(token(), decided, channel="private-b")) == {}


@pytest.mark.parametrize(
    ("claim", "origin", "text"),
    [
        ("https://shop.example", "https://two.example", "not https://two.example: put that origin into the claim origin"),
        ("*", "https://three.example", "the origins of app shop do not contain https://three.example"),
        ("https://shop.example", "https://shop.example", ""),
    ],
)
def test_an_origin_that_may_not_use_the_token_is_named(claim: str, origin: str, text: str) -> None:
    assert text in wrong(check(token(origin=claim), origin=origin)).get("origin", "")


def test_every_mistake_is_named_and_not_only_the_first() -> None:
    found = wrong(check(token("x" * 32, app="news", exp=1, channel=7)))
    assert list(found) == ["app", "signature", "exp", "channel"]


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "e30.e30", "ä.ä.ä", "\ud800", SECRET, "." * 9000])
def test_a_text_that_is_no_token_is_rejected_without_its_content(text: str) -> None:
    found = wrong(check(text))
    assert list(found) == ["form"]
    assert not text or text not in found["form"]
    assert ("its three parts are not JSON" in found["form"]) == (text.count(".") == 2)


def test_a_session_token_is_recognised() -> None:
    signed = f"shop-key:{auth.session_token(SECRET, '1.2', 'private-a')}"
    assert "a session token" in wrong(check(signed))["form"]


def test_disabled_apps_and_apps_without_a_secret_are_named() -> None:
    disabled = AppConfig(id="shop", key="k", secret=SECRET, enable=False)
    assert "which is disabled" in wrong(check(token(), disabled))["app"]
    without = AppConfig(id="shop", key="k", secret="")
    assert "app shop has no secret here" in wrong(check(token(), without))["signature"]


def test_an_older_secret_is_named_by_its_number() -> None:
    rotated = AppConfig(id="shop", key="shop-key", secret="n" * 32, older_secrets=(SECRET,))
    found = check(token(), rotated)
    assert found.accepted
    (text,) = [one.text for one in found.checks if one.part == "signature"]
    assert text.startswith("made with secret 2 of 2 of app shop, until `push1st app retire shop` removes it")


def test_a_token_above_the_limit_is_rejected() -> None:
    assert "the limit is 8192" in wrong(check(token(channel=["private-" + "x" * 100] * 80)))["form"]


def test_an_answer_never_contains_a_secret() -> None:
    found = check(token(app=SECRET, channel=[OTHER], origin=SECRET, sub=OTHER), channel="private-b", origin="x")
    assert "canary" not in repr(found)


def test_a_secret_that_is_a_common_word_changes_no_text() -> None:
    found = check(token("secret"), AppConfig(id="shop", key="k", secret="secret"))
    assert "made with the secret of app shop" in [one.text for one in found.checks]


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text(max_size=3)))
odd = st.fixed_dictionaries(
    {},
    optional={
        "app": st.one_of(st.just("shop"), values),
        "exp": st.one_of(st.just(NOW + 1), values),
        "nbf": st.one_of(st.just(NOW), values),
        "origin": st.one_of(st.just("*"), values),
        "channel": st.one_of(st.just("*"), values),
    },
)


@given(odd, st.sampled_from([SECRET, OTHER]))
def test_the_verdict_is_that_of_the_server(claims: dict[str, Any], secret: str) -> None:
    signed = jwt.api_jws.encode(json.dumps(claims).encode(), secret, algorithm="HS256")
    try:
        auth.check_access_token((SECRET,), "shop", signed, NOW)
        accepted = True
    except Refused:
        accepted = False
    assert check(signed).accepted is accepted


# -- the command


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "server.yml").write_text("credentials: [ apps.yml ]")
    (tmp_path / "apps.yml").write_text(
        f"shop: {{ key: shop-key, secret: {SECRET} }}\nnews: {{ key: news-key, secret: {OTHER} }}\n"
    )
    return str(tmp_path / "server.yml")


def test_the_token_selects_its_app(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = token(OTHER, app="news", exp=...)
    assert main(["token", "check", "-c", file, fresh]) == 0
    out = capsys.readouterr().out
    assert out.startswith("accepted for clients of app news\n")
    assert "canary" not in out
    assert fresh not in out


def test_a_rejected_token_ends_the_command_with_1_and_its_parts_as_json(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "check", "--json", "-c", file, token(exp=1)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["accepted"], answer["app"]) == (False, "shop")
    assert [one["part"] for one in answer["checks"] if not one["passed"]] == ["exp"]


def test_a_token_of_an_unknown_app_is_rejected_without_a_choice(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "check", "-c", file, token(app="nobody", exp=...)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("rejected\n")
    assert "nobody, which the configuration does not have" in out


def test_an_option_selects_the_app_and_its_secret(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "check", "-c", file, "--app", "news", token(exp=...)]) == 1
    assert "shop, but the app's id is news" in capsys.readouterr().out
    assert main(["token", "check", "--app", "far", "--secret", "x" * 32, token("x" * 32, app="far", exp=...)]) == 0


def test_a_token_is_read_from_the_standard_input(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(f"Bearer {token(exp=...)}\n")
    with open(tmp_path / "token") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["token", "check", "-c", file, "-"]) == 0
    assert "accepted" in capsys.readouterr().out
