"""Every signature and token: golden vectors, each rejection, and texts that must not be signable."""

import base64
import hashlib
import hmac
import json
import math
import sys
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import quote, quote_plus, urlencode

import jwt
import pusher
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from pusher.http import GET, POST, Request

from push1st import auth
from push1st.errors import Refused

# Pusher protocol, section 9: the golden vectors.
KEY, SECRET = "278d425bdf160c739803", "7ad3773142a6692b25b8"
BODY = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
THEN = 1353088179
GOLDEN = {
    "auth_key": KEY,
    "auth_timestamp": str(THEN),
    "auth_version": "1.0",
    "body_md5": "ec365a775a4cd0599faeb73354201b6f",
    "auth_signature": "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
}
PRIVATE_TOKEN = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
USER_TOKEN = "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"


def refusal(code: int, part: str):
    """Makes a context that expects Refused with this code and with `part` in its text."""
    return pytest.raises(Refused, match=rf"\A{code}: .*{part}")


# Texts and digests


def test_a_signature_is_hmac_sha256_in_lower_case_hex():
    assert auth.hmac_hex("secret", "text") == hmac.new(b"secret", b"text", "sha256").hexdigest()
    assert auth.hmac_hex("secret", b"text") == auth.hmac_hex("secret", "text")


def test_text_is_signed_as_utf8():
    assert auth.hmac_hex("sécret", "жук") == hmac.new("sécret".encode(), "жук".encode(), "sha256").hexdigest()


@pytest.mark.parametrize(
    ("token", "header", "is_right"),
    [
        ("t", b"Bearer t", True),
        ("t", b"bearer  t ", True),
        ("t", b"Basic t", False),
        ("t", b"t", False),
        ("t", b"Bearer tt", False),
        ("t", b"Bearer", False),
        ("t", b"Bearer \xff", False),
        ("t", None, False),
        ("", b"Bearer ", False),
        ("", b"Bearer", False),
        ("", None, False),
    ],
)
def test_a_bearer_token_is_compared_with_the_header(token, header, is_right):
    assert auth.check_bearer(token, header) is is_right


def test_a_lone_surrogate_is_signed_and_compared_like_any_other_text():
    assert auth.hmac_hex("s", "\ud800") != auth.hmac_hex("s", "\ud801")
    assert auth.equal("\ud800", "\ud800")
    assert not auth.equal("\ud800", "\ud801")


@given(st.text(), st.text())
def test_equal_agrees_with_comparison(a, b):
    assert auth.equal(a, b) == (a == b)
    assert auth.equal(a, a)


# Channels


def test_the_private_channel_vector_of_pusher_is_reproduced():
    assert auth.channel_signature(SECRET, "1234.1234", "private-foobar") == PRIVATE_TOKEN


def test_the_presence_channel_vector_of_pusher_is_reproduced():
    data = '{"user_id":10,"user_info":{"name":"Mr. Channels"}}'
    token = auth.channel_signature(SECRET, "1234.1234", "presence-foobar", data)
    assert (token[:8], token[-4:]) == ("31935e7d", "bc80")


@pytest.mark.parametrize("token", [PRIVATE_TOKEN, f"{KEY}:{PRIVATE_TOKEN}"])
def test_a_channel_token_is_accepted_alone_and_after_the_app_key(token):
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "private-foobar", token) == 0


@pytest.mark.parametrize(
    "token",
    [
        "",
        ":",
        f"{KEY}:",
        f"{KEY}:{KEY}:{PRIVATE_TOKEN}",
        f"other:{PRIVATE_TOKEN}",
        PRIVATE_TOKEN.upper(),
        PRIVATE_TOKEN + "\n",
        "é",
    ],
)
def test_any_other_channel_token_is_refused(token):
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "private-foobar", token) is None


def test_channel_token_is_valid_for_one_socket_one_channel_and_one_channel_data():
    assert auth.check_channel(KEY, (SECRET,), "1234.1235", "private-foobar", PRIVATE_TOKEN) is None
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "private-foobar2", PRIVATE_TOKEN) is None
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "private-foobar", PRIVATE_TOKEN, "{}") is None
    assert auth.check_channel(KEY, (SECRET[1:],), "1234.1234", "private-foobar", PRIVATE_TOKEN) is None


def test_a_sign_in_does_not_authorise_a_channel_with_an_empty_name():
    assert auth.channel_signature(SECRET, "1234.1234", "", 'user::{"id":"12345"}') == USER_TOKEN
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "", USER_TOKEN, 'user::{"id":"12345"}') is None


def test_a_presence_token_does_not_authorise_a_channel_named_like_its_channel_and_data():
    token = auth.channel_signature(SECRET, "1.2", "presence-r", '{"user_id":"1"}')
    assert auth.check_channel(KEY, (SECRET,), "1.2", 'presence-r:{"user_id":"1"}', token) is None


@pytest.mark.parametrize("data", ["", "{}"])
def test_the_python_sdk_authorises_channels(data):
    client = pusher.Pusher("3", KEY, SECRET)
    answer = client.authenticate("presence-foobar", "1234.1234", json.loads(data) if data else None)
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "presence-foobar", answer["auth"], answer.get("channel_data", "")) == 0


# Sign-in


def test_the_sign_in_vector_of_pusher_is_reproduced():
    assert auth.user_signature(SECRET, "1234.1234", '{"id":"12345"}') == USER_TOKEN


@pytest.mark.parametrize("token", [USER_TOKEN, f"{KEY}:{USER_TOKEN}"])
def test_a_sign_in_is_accepted(token):
    assert auth.check_user(KEY, (SECRET,), "1234.1234", '{"id":"12345"}', token) == 0


def test_sign_in_signature_is_valid_for_one_socket_and_one_user():
    assert auth.check_user(KEY, (SECRET,), "1234.1235", '{"id":"12345"}', USER_TOKEN) is None
    assert auth.check_user(KEY, (SECRET,), "1234.1234", '{"id":"admin"}', USER_TOKEN) is None
    assert auth.check_user(KEY, (SECRET,), "1234.1234", '{"id":"12345"}', f"{KEY}::user::{USER_TOKEN}") is None


# Session tokens


def test_the_session_token_vector_of_push1st_is_reproduced():
    expected = "661daaab5d7269a3b7ebfe9154a5ade9bcab833a53fce3dba34ca2a41eab2a7d"
    assert auth.session_token("secret", "1234", "private-user.1", "") == expected


def test_a_session_token_authorises_its_subscription():
    token = auth.session_token(SECRET, "1234.1234", "presence-r", '{"user_id":"1"}')
    assert auth.check_channel(KEY, (SECRET,), "1234.1234", "presence-r", token, '{"user_id":"1"}') == 0


@pytest.mark.parametrize("session", ["", "a:b", "1.2\n", "\n1.2", "GET\n/apps", "1.2:", "é", "1 2", "{", "x" * 129, "\u0661.2"])
def test_a_session_with_other_characters_is_refused(session):
    with refusal(400, "session .* must be 1 to 128 characters"):
        auth.session_token(SECRET, session, "private-x")


def test_a_session_of_128_characters_is_accepted():
    assert len(auth.session_token(SECRET, "x" * 128, "private-x")) == 64


@pytest.mark.parametrize(
    "channel",
    ["", ":user::x", ':user::{"id":"admin"}', 'presence-r:{"user_id":"1"}', "a\n", "a\nb", "a b", "é", "x" * 165, "##a", "#"],
)
def test_a_channel_outside_the_rule_for_names_is_refused(channel):
    with refusal(400, "channel name"):
        auth.session_token(SECRET, "1.2", channel)


@pytest.mark.parametrize("channel", ["#server-to-user-1", "#x"])
def test_a_reserved_channel_cannot_be_signed_for(channel):
    with refusal(400, "reserved"):
        auth.session_token(SECRET, "1.2", channel)


def signed_text(session: str, channel: str, data: str) -> str | None:
    """Returns the text that `session_token` signs for these arguments, or None if it rejects them."""
    with patch.object(auth, "hmac_hex") as signed:
        try:
            auth.session_token(SECRET, session, channel, data)
        except Refused:
            return None
    text: str = signed.call_args.args[1]
    return text


HOSTILE = ["1.2", "1.2:", ":user:", "user", "GET", "GET\n/apps/1/channels\n", "presence-r", "private-x", "eyJ.eyJ", '{"id":"1"}']
hostile = st.text(max_size=20) | st.text('a1.:#\n{"/-_=@,;', max_size=20) | st.sampled_from(HOSTILE)


@given(hostile, hostile, hostile)
def test_text_of_a_session_token_has_one_interpretation(session, channel, data):
    text = signed_text(session, channel, data)
    if text is None:
        return
    first, _, rest = text.partition(":")
    name, _, tail = rest.partition(":")
    assert (first, name, tail) == (session, channel, data)  # the only interpretation as a subscription
    assert not rest.startswith(":")  # no sign-in: `id::user::…`
    assert "\n" not in first  # no API request: `METHOD\n/path\n…`
    assert not text.startswith("{")  # no webhook
    assert ":" in text  # no JWT: base64url and dots


# Apps without a secret


def test_without_a_secret_nothing_is_signed():
    with refusal(403, "no secret"):
        auth.session_token("", "1.2", "private-x")
    with refusal(403, "no secret"):
        auth.access_token("", "app", "*", "*", 0, THEN)
    with pytest.raises(ValueError, match="no secret"):
        auth.sign_request(KEY, "", "GET", "/", {}, b"", THEN)


def test_without_a_secret_a_signature_made_with_an_empty_key_is_refused():
    assert auth.check_channel(KEY, (), "1.2", "private-x", auth.channel_signature("", "1.2", "private-x")) is None
    assert auth.check_user(KEY, (), "1.2", "{}", auth.user_signature("", "1.2", "{}")) is None
    with refusal(401, "no secret"):
        auth.check_access_token((), "app", jwt.encode({"app": "app", "channel": "*"}, b"\0" * 32), THEN)
    query = f"auth_key={KEY}&auth_timestamp={THEN}&auth_version=1.0"
    signature = auth.hmac_hex("", f"GET\n/\n{query}")
    with refusal(401, "no secret"):
        auth.check_request(KEY, "", "GET", "/", f"{query}&auth_signature={signature}", b"", THEN)


# Access tokens


LONG = "a secret that PyJWT does not warn about"


def token_of(claims: object, secret: str = LONG, header: object = None) -> str:
    """Makes a JWT without this package and without PyJWT, which refuses to make some of them."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims))
    signature = base64.urlsafe_b64encode(hmac.digest(secret.encode(), signed, "sha256")).rstrip(b"=")
    return (signed + b"." + signature).decode()


GOOD = {"app": "app-test", "origin": "*", "channel": "*"}


def test_access_token_has_the_claims_it_was_made_with():
    token = auth.access_token(SECRET, "app-test", "https://example.com", ["private-a", "presence-*"], 60, THEN)
    claims = auth.check_access_token((SECRET,), "app-test", token, THEN)
    assert claims == auth.Claims("app-test", "https://example.com", ("private-a", "presence-*"), THEN + 60)


def test_an_access_token_with_a_ttl_of_zero_never_expires():
    token = auth.access_token(SECRET, "app-test", "*", "*", 0, THEN)
    assert auth.check_access_token((SECRET,), "app-test", token, 10 * THEN).exp is None
    assert "exp" not in jwt.decode(token, options={"verify_signature": False})


def test_an_access_token_is_a_standard_jwt_that_others_can_check():
    token = auth.access_token(LONG, "app-test", "*", "private-x", 0, THEN)
    assert jwt.decode(token, LONG, algorithms=["HS256"]) == {"app": "app-test", "origin": "*", "channel": "private-x"}
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_an_access_token_that_a_backend_made_is_accepted_and_further_claims_are_ignored():
    further = {"sub": 7, "aud": "x", "iss": 1, "jti": 2, "iat": "never", "name": None}
    claims = auth.check_access_token((LONG,), "app-test", token_of(GOOD | further), THEN)
    assert claims == auth.Claims("app-test", "*", ("*",), None)


def test_a_short_secret_signs_as_it_does_elsewhere_and_without_a_warning():
    assert auth.check_access_token(("secret",), "app-test", token_of(GOOD, "secret"), THEN).channels == ("*",)
    signed, _, signature = auth.access_token("secret", "app-test", "*", "*", 0, THEN).rpartition(".")
    assert base64.urlsafe_b64decode(signature + "=") == hmac.digest(b"secret", signed.encode(), "sha256")


def test_a_token_without_an_origin_is_good_for_any():
    claims = auth.check_access_token((LONG,), "app-test", token_of({"app": "app-test", "channel": "x"}), THEN)
    assert claims.allows_origin(None)
    assert claims.allows_origin("https://example.com")


def test_a_token_expires_at_the_second_it_names():
    token = token_of(GOOD | {"exp": THEN})
    assert auth.check_access_token((LONG,), "app-test", token, THEN - 0.1).exp == THEN
    with refusal(401, "has expired"):
        auth.check_access_token((LONG,), "app-test", token, THEN)


def test_clients_with_the_same_access_token_share_its_claims():
    token = token_of(GOOD | {"exp": THEN})
    assert auth.check_access_token((LONG,), "app-test", token, THEN - 1) is auth.check_access_token(
        (LONG,), "app-test", token, THEN - 2
    )
    with pytest.raises(Refused, match="has expired"):
        auth.check_access_token((LONG,), "app-test", token, THEN)


@pytest.mark.parametrize("nbf", [THEN, THEN - 0.5, 0, -1])
def test_a_token_is_valid_from_the_second_it_names(nbf):
    assert auth.check_access_token((LONG,), "app-test", token_of(GOOD | {"nbf": nbf}), THEN).allows("private-a")


@pytest.mark.parametrize("exp", [10**400, 1e300])
def test_an_expiry_beyond_every_clock_is_a_finite_time(exp):
    assert auth.check_access_token((LONG,), "app-test", token_of(GOOD | {"exp": exp}), THEN).exp == auth.NEVER


def test_an_expiry_with_a_fraction_is_a_number_too():
    assert auth.check_access_token((LONG,), "app-test", token_of(GOOD | {"exp": THEN + 0.5}), THEN).exp == THEN


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"origin": "*", "channel": "*"}, "another app"),
        (GOOD | {"app": "other"}, "another app"),
        (GOOD | {"app": ["app-test"]}, "another app"),
        (GOOD | {"origin": None}, "origin is not a text"),
        (GOOD | {"origin": ["*"]}, "origin is not a text"),
        (GOOD | {"origin": ""}, "origin is not a text"),
        ({"app": "app-test", "origin": "*"}, "channel is neither"),
        (GOOD | {"channel": None}, "channel is neither"),
        (GOOD | {"channel": 1}, "channel is neither"),
        (GOOD | {"channel": {"*": 1}}, "channel is neither"),
        (GOOD | {"channel": ["a", 1]}, "channel is neither"),
        (GOOD | {"exp": None}, "exp is not a number"),
        (GOOD | {"exp": True}, "exp is not a number"),
        (GOOD | {"exp": "1353088200"}, "exp is not a number"),
        (GOOD | {"exp": math.nan}, "exp is not a number"),
        (GOOD | {"exp": math.inf}, "exp is not a number"),
        (GOOD | {"exp": THEN - 1}, "has expired"),
        (GOOD | {"nbf": THEN + 1}, "not valid yet"),
        (GOOD | {"nbf": THEN + 0.5}, "not valid yet"),
        (GOOD | {"nbf": THEN + 60, "exp": THEN + 120}, "not valid yet"),
        (GOOD | {"nbf": 10**400}, "not valid yet"),
        (GOOD | {"nbf": None}, "nbf is not a number"),
        (GOOD | {"nbf": False}, "nbf is not a number"),
        (GOOD | {"nbf": "0"}, "nbf is not a number"),
        (GOOD | {"nbf": math.nan}, "nbf is not a number"),
        (GOOD | {"exp": 0}, "has expired"),
        (GOOD | {"exp": -1}, "has expired"),
        (["app-test"], "not a JWT"),
        ("app-test", "not a JWT"),
    ],
)
def test_a_token_with_wrong_claims_is_refused(claims, text):
    with refusal(401, text):
        auth.check_access_token((LONG,), "app-test", token_of(claims), THEN)


@pytest.mark.parametrize("alg", ["none", "None", "HS384", "HS512", "RS256", "hs256", "", None, 7, ["HS256"]])
def test_a_token_that_claims_another_algorithm_is_refused(alg):
    with refusal(401, "access token is not"):
        auth.check_access_token((LONG,), "app-test", token_of(GOOD, header={"alg": alg, "typ": "JWT"}), THEN)


def test_an_unsigned_token_is_refused():
    with refusal(401, "not signed with HS256"):
        auth.check_access_token((LONG,), "app-test", jwt.encode(GOOD, "", algorithm="none"), THEN)


def test_a_token_really_signed_with_another_algorithm_is_refused():
    token = jwt.encode(GOOD, LONG * 2, algorithm="HS512")
    with refusal(401, "not signed with HS256"):
        auth.check_access_token((LONG * 2,), "app-test", token, THEN)


def test_a_token_of_another_secret_is_refused():
    with refusal(401, "not signed with the secret of this app"):
        auth.check_access_token((LONG,), "app-test", token_of(GOOD, LONG + "x"), THEN)


def test_a_token_with_changed_claims_is_refused():
    head, _, tail = token_of(GOOD).split(".")
    _, claims, _ = token_of(GOOD | {"app": "other"}).split(".")
    with refusal(401, "not signed with the secret of this app"):
        auth.check_access_token((LONG,), "other", f"{head}.{claims}.{tail}", THEN)


def test_a_token_with_a_critical_header_is_refused():
    with refusal(401, "not a JWT"):
        auth.check_access_token((LONG,), "app-test", token_of(GOOD, header={"alg": "HS256", "crit": ["exp"], "exp": 1}), THEN)


def test_a_token_longer_than_8_kib_is_refused():
    with refusal(401, "bytes long, the limit is 8192"):
        auth.check_access_token((LONG,), "app-test", token_of(GOOD | {"name": "x" * 8192}), THEN)


@pytest.mark.parametrize("depth", [500, 1500, 4000])
@pytest.mark.parametrize("segment", [0, 1])
def test_a_deeply_nested_token_is_refused(depth, segment):
    nested = base64.urlsafe_b64encode(b"[" * depth).rstrip(b"=").decode()
    parts = token_of(GOOD).split(".")
    parts[segment] = nested
    with refusal(401, "access token is not"):
        auth.check_access_token((LONG,), "app-test", ".".join(parts), THEN)


def test_a_signed_and_deeply_nested_claim_is_refused_or_ignored_but_does_not_fail():
    signed = ".".join(
        [
            token_of(GOOD).split(".")[0],
            base64.urlsafe_b64encode(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}").rstrip(b"=").decode(),
        ]
    )
    signature = base64.urlsafe_b64encode(hmac.digest(LONG.encode(), signed.encode(), "sha256")).rstrip(b"=").decode()
    with refusal(401, "access token is"):
        auth.check_access_token((LONG,), "app-test", f"{signed}.{signature}", THEN)


@given(
    st.one_of(
        st.text(),
        st.text("eyJhbGciOiJIUzI1NiJ9._-=", max_size=60),
        st.binary().map(lambda b: base64.b64encode(b).decode() + ".."),
    )
)
def test_any_other_text_is_no_token(text):
    with refusal(401, "access token"):
        auth.check_access_token((LONG,), "app-test", text, THEN)


@given(st.dictionaries(st.sampled_from(["app", "origin", "channel", "exp", "nbf"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["app-test", "*"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)))  # fmt: skip
def test_signed_claims_of_any_kind_are_read_or_refused(claims):
    try:
        auth.check_access_token((LONG,), "app-test", token_of({"app": "app-test", "channel": "*"} | claims), THEN)
    except Refused as refused:
        assert refused.code == 401  # noqa: PT017 - being accepted is fine as well


def test_making_a_token_with_a_negative_ttl_or_no_origin_is_refused():
    with refusal(400, "ttl is -1"):
        auth.access_token(SECRET, "app-test", "*", "*", -1, THEN)
    with refusal(400, "origin is empty"):
        auth.access_token(SECRET, "app-test", "", "*", 0, THEN)


@pytest.mark.parametrize(
    ("pattern", "channel", "allowed"),
    [
        ("*", "anything", True),
        ("*", "private-x", True),
        ("private-*", "private-x", True),
        ("private-*", "private-", True),
        ("private-*", "private", False),
        ("private-*", "xprivate-x", False),
        ("private-x", "private-x", True),
        ("private-x", "private-x2", False),
        ("private-x", "Private-x", False),
        ("pri*-x", "private-x", False),
        ("pri*-x", "pri*-x", True),
        ("a**", "a*b", True),
        ("a**", "ab", False),
        ("", "private-x", False),
    ],
)
def test_a_channel_claim_matches_all_a_prefix_or_one_name(pattern, channel, allowed):
    assert auth.Claims("app", "*", (pattern,), None).allows(channel) is allowed


def test_list_of_channels_allows_each_match_of_an_entry():
    claims = auth.Claims("app", "*", ("private-a", "presence-*"), None)
    assert [claims.allows(name) for name in ("private-a", "presence-b", "private-b")] == [True, True, False]
    assert not auth.Claims("app", "*", (), None).allows("private-a")


@pytest.mark.parametrize(
    ("fixed", "origin", "allowed"),
    [
        ("*", None, True),
        ("*", "https://a.com", True),
        ("https://a.com", "https://a.com", True),
        ("https://a.com", "https://a.com.evil.com", False),
        ("https://a.com", "http://a.com", False),
        ("https://a.com", "", False),
        ("https://a.com", "*", False),
        ("https://a.com", None, False),
    ],
)
def test_a_fixed_origin_refuses_any_other_and_none(fixed, origin, allowed):
    assert auth.Claims("app", fixed, ("*",), None).allows_origin(origin) is allowed


# API requests


def query_of(params: dict[str, str]) -> str:
    return "&".join(f"{name}={value}" for name, value in params.items())


def check(query: str, body: bytes = BODY, *, method: str = "POST", path: str = "/apps/3/events", now: float = THEN) -> None:
    auth.check_request(KEY, SECRET, method, path, query, body, now)


def test_the_request_vector_of_pusher_is_reproduced():
    assert auth.sign_request(KEY, SECRET, "POST", "/apps/3/events", {}, BODY, THEN) == GOLDEN


@pytest.mark.parametrize(
    "query", [query_of(GOLDEN), query_of(dict(sorted(GOLDEN.items()))), query_of(dict(reversed(GOLDEN.items())))]
)
def test_the_request_vector_of_pusher_is_accepted_in_any_order(query):
    check(query)


def test_names_are_signed_in_lower_case():
    check(query_of({name.upper(): value for name, value in GOLDEN.items()}))


def test_empty_parts_of_a_query_do_not_matter():
    check(f"&{query_of(GOLDEN)}&&")


def test_a_get_is_signed_without_a_body_md5():
    params = auth.sign_request(KEY, SECRET, "GET", "/apps/3/channels", {"filter_by_prefix": "presence-"}, b"", THEN)
    assert "body_md5" not in params
    check(query_of(params), b"", method="GET", path="/apps/3/channels")


def test_values_are_signed_unescaped():
    params = auth.sign_request(KEY, SECRET, "GET", "/apps/3/channels", {"info": "user_count,cache", "name": "a b+c=é"}, b"", THEN)
    for escape in (quote, quote_plus):
        query = urlencode(params, quote_via=escape)
        assert "%2C" in query
        check(query, b"", method="GET", path="/apps/3/channels")


def test_query_values_may_be_unescaped_as_official_libraries_send_them():
    params = auth.sign_request(KEY, SECRET, "GET", "/apps/3/channels", {"info": "user_count,cache=;@"}, b"", THEN)
    check(query_of(params), b"", method="GET", path="/apps/3/channels")


def test_arrays_are_signed_in_their_order_in_the_query():
    base = f"auth_key={KEY}&auth_timestamp={THEN}&auth_version=1.0"
    signature = auth.hmac_hex(SECRET, f"GET\n/p\n{base}&info[]=b&info[]=a")
    check(f"info[]=b&info%5B%5D=a&{base}&auth_signature={signature}", b"", method="GET", path="/p")
    with refusal(401, "auth_signature is wrong"):
        check(f"info[]=a&info[]=b&{base}&auth_signature={signature}", b"", method="GET", path="/p")


def test_path_is_signed_as_in_the_request_line():
    params = auth.sign_request(KEY, SECRET, "GET", "/apps/3/channels/a%2Cb", {}, b"", THEN)
    check(query_of(params), b"", method="GET", path="/apps/3/channels/a%2Cb")
    with refusal(401, "auth_signature is wrong"):
        check(query_of(params), b"", method="GET", path="/apps/3/channels/a,b")


def test_an_empty_body_with_its_md5_is_accepted():
    empty = {"body_md5": hashlib.md5(b"", usedforsecurity=False).hexdigest()}
    pairs = {"auth_key": KEY, "auth_timestamp": str(THEN), "auth_version": "1.0"} | empty
    signature = auth.hmac_hex(SECRET, f"GET\n/p\n{query_of(pairs)}")
    check(f"{query_of(pairs)}&auth_signature={signature}", b"", method="GET", path="/p")


def test_empty_body_with_the_md5_of_another_body_is_rejected():
    with refusal(401, "body_md5 is not the MD5 of the 0 bytes received"):
        check(query_of(GOLDEN), b"")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_missing_parameter_is_named(name):
    with refusal(401, f"{name} is missing"):
        check(query_of({key: value for key, value in GOLDEN.items() if key != name}))


def test_a_request_without_a_query_is_refused():
    with refusal(401, "auth_key is missing"):
        check("")


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize("spell", [str.lower, str.upper, lambda name: f"%{ord(name[0]):02x}{name[1:]}"])
def test_a_parameter_of_the_signature_given_twice_is_refused(name, spell):
    with refusal(401, f"{name} is given more than once"):
        check(f"{query_of(GOLDEN)}&{spell(name)}={GOLDEN[name]}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"auth_key": "other"}, "auth_key is not the key"),
        ({"auth_key": KEY + "0"}, "auth_key is not the key"),
        ({"auth_version": "1"}, "auth_version is '1'"),
        ({"auth_version": "2.0"}, "auth_version is '2.0'"),
        ({"auth_timestamp": ""}, "auth_timestamp is '', not a number"),
        ({"auth_timestamp": "now"}, "not a number"),
        ({"auth_timestamp": "-1"}, "not a number"),
        ({"auth_timestamp": "1353088179.5"}, "not a number"),
        ({"auth_timestamp": "\u0661\u0663"}, "not a number"),
        ({"auth_timestamp": "9" * 5000}, "not a number"),
        ({"auth_timestamp": f"{THEN}000"}, f"{THEN * 999} s in the future"),
        ({"auth_timestamp": str(THEN - 601)}, "601 s in the past, the limit is 600 s"),
        ({"auth_timestamp": str(THEN + 601)}, "601 s in the future"),
        ({"auth_timestamp": str(THEN + 1)}, "auth_signature is wrong"),
        ({"body_md5": "0" * 32}, "body_md5 is not the MD5 of the 68 bytes received"),
        ({"body_md5": "é"}, "body_md5 is not"),
        ({"auth_signature": ""}, "auth_signature is wrong"),
        ({"auth_signature": "0" * 64}, "auth_signature is wrong"),
        ({"auth_signature": "é"}, "auth_signature is wrong"),
        ({"auth_signature": GOLDEN["auth_signature"].upper()}, "auth_signature is wrong"),
        ({"further": "1"}, "auth_signature is wrong"),
        ({"further": "\udc80"}, "auth_signature is wrong"),
        ({"further": "%80"}, "not UTF-8"),
        ({"further": "a%26b"}, "'further' cannot be signed"),
        ({"a%3Db": "c"}, "'a=b' cannot be signed"),
        ({"a%26b": "c"}, "'a&b' cannot be signed"),
    ],
)
def test_changed_query_is_rejected_with_the_reason(change, text):
    with refusal(401, text) as caught:
        check(query_of(GOLDEN | change))
    assert GOLDEN["auth_signature"] not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_clock_that_differs_by_600_seconds_is_accepted():
    check(query_of(GOLDEN), now=THEN + 600.9)
    check(query_of(GOLDEN), now=THEN - 600)


def test_another_body_method_path_or_secret_is_refused():
    with refusal(401, "body_md5 is not"):
        check(query_of(GOLDEN), BODY + b" ")
    for method, path in (("PUT", "/apps/3/events"), ("POST", "/apps/4/events"), ("POST", "/apps/3/events/")):
        with refusal(401, "auth_signature is wrong"):
            check(query_of(GOLDEN), method=method, path=path)
    with refusal(401, "auth_signature is wrong"):
        auth.check_request(KEY, "other", "POST", "/apps/3/events", query_of(GOLDEN), BODY, THEN)


def test_an_escaped_ampersand_does_not_make_two_parameters_one():
    params = auth.sign_request(KEY, SECRET, "GET", "/p", {"info": "user_count", "limit": "1"}, b"", THEN)
    query = query_of(params)
    check(query, b"", method="GET", path="/p")
    joined = "info=user_count%26limit%3D1&" + query_of({name: params[name] for name in params if name.startswith("auth_")})
    with refusal(401, "'info' cannot be signed"):
        check(joined, b"", method="GET", path="/p")


@pytest.mark.parametrize("params", [{"a&b": "c"}, {"a=b": "c"}, {"a": "b&c"}, {"auth_key": "x"}, {"Body_MD5": "x"}])
def test_parameters_that_cannot_be_signed_are_not_signed(params):
    with pytest.raises(ValueError, match=r"cannot be signed|belong to the signature"):
        auth.sign_request(KEY, SECRET, "GET", "/", params, b"", THEN)


names = st.text(st.characters(exclude_characters="&=", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name.lower() not in {*GOLDEN}
)
values = st.text(st.characters(exclude_characters="&", exclude_categories=["Cs"]))
signed_requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.text("/apps-3%2C.~", min_size=1).map(lambda path: "/" + path),
    st.dictionaries(names, values),
    st.binary(max_size=300),
    st.integers(0, 2**40),
)


@given(signed_requests, st.randoms(use_true_random=False))
def test_any_signed_request_is_accepted_in_any_order_of_its_parameters(request, random):
    method, path, params, body, now = request
    pairs = list(auth.sign_request(KEY, SECRET, method, path, params, body, now).items())
    if len({name.lower() for name in params}) == len(params):
        random.shuffle(pairs)
    auth.check_request(KEY, SECRET, method, path, urlencode(pairs), body, now)


@given(signed_requests, st.data())
def test_any_request_with_one_byte_changed_is_refused(request, data):
    method, path, params, body, now = request
    signed = auth.sign_request(KEY, SECRET, method, path, params, body, now)
    parts = [method.encode(), path.encode(), body, *(value.encode() for value in signed.values())]
    which = data.draw(st.sampled_from([index for index, part in enumerate(parts) if part]))
    at = data.draw(st.integers(0, len(parts[which]) - 1))
    byte = data.draw(st.integers(0, 127).filter(lambda byte: byte != parts[which][at] and byte != ord("&")))
    parts[which] = parts[which][:at] + bytes([byte]) + parts[which][at + 1 :]
    pairs = list(zip(signed, parts[3:], strict=True))
    with pytest.raises(Refused) as caught:
        auth.check_request(KEY, SECRET, parts[0].decode(), parts[1].decode(), urlencode(pairs), parts[2], now)
    assert caught.value.code == 401


@given(st.text(), st.binary(max_size=8))
def test_any_invalid_query_is_rejected(query, body):
    with pytest.raises(Refused):
        check(query, body)


# The official Python library as the client


@pytest.fixture
def sdk(monkeypatch):
    monkeypatch.setattr("pusher.http.time", SimpleNamespace(time=lambda: THEN + 0.4))
    return pusher.Pusher("3", KEY, SECRET, ssl=False, host="localhost", port=6001)


def wire(request: Request) -> str:
    """Returns the query of the request line that `requests`, the HTTP client of the library, sends."""
    url = requests.Request(request.method, request.url).prepare().path_url
    return url.partition("?")[2]


@pytest.mark.parametrize(
    ("method", "path", "params"),
    [
        (POST, "/apps/3/events", {"name": "foo", "channels": ["project-3"], "data": "жук"}),
        (POST, "/apps/3/batch_events", {"batch": []}),
        (POST, "/apps/3/users/u1/terminate_connections", {}),
        (GET, "/apps/3/channels", {}),
        (GET, "/apps/3/channels", {"info": "user_count,subscription_count", "filter_by_prefix": "presence-é @;"}),
        (GET, "/apps/3/channels/presence-a=@,.;", {"info": "user_count"}),
        (GET, "/apps/3/channels/presence-a/users", {}),
    ],
)
def test_requests_of_the_python_sdk_are_accepted(sdk, method, path, params):
    request = Request(sdk._pusher_client, method, path, params)
    auth.check_request(KEY, SECRET, request.method, request.path, wire(request), request.body, THEN)


def test_calls_of_the_python_sdk_are_accepted(sdk):
    calls = [
        sdk._pusher_client.trigger.make_request(["a", "private-b"], "e", {"x": 1}, "1.2"),
        sdk._pusher_client.channels_info.make_request("presence-", ["user_count"]),
        sdk._pusher_client.channel_info.make_request("presence-a", ["user_count"]),
        sdk._pusher_client.users_info.make_request("presence-a"),
    ]
    for request in calls:
        auth.check_request(KEY, SECRET, request.method, request.path, wire(request), request.body, THEN)


def test_the_python_sdk_makes_the_same_signature(sdk):
    request = Request(sdk._pusher_client, GET, "/apps/3/channels", {"info": "user_count"})
    ours = auth.sign_request(KEY, SECRET, GET, "/apps/3/channels", {"info": "user_count"}, b"", THEN)
    empty = hashlib.md5(b"", usedforsecurity=False).hexdigest()
    assert request.query_params["body_md5"] == empty  # the library signs the MD5 of an empty body, too
    assert set(ours) == set(request.query_params) - {"body_md5"}


# Comparing


def test_signatures_are_compared_in_constant_time(monkeypatch):
    """A comparison with `==` lets a client guess a signature byte by byte (Pusher protocol, section 11)."""
    monkeypatch.setattr("hmac.compare_digest", lambda *_: True)
    assert auth.check_channel(KEY, (SECRET,), "1.2", "private-c", "wrong") == 0
    assert auth.check_user(KEY, (SECRET,), "1.2", "{}", "wrong") == 0
    query = GOLDEN | {"auth_signature": "wrong", "body_md5": "wrong"}
    auth.check_request(KEY, SECRET, "POST", "/apps/3/events", urlencode(query), BODY, THEN)
    token = auth.access_token("another secret", "app", "*", "*", 0, 0)
    assert auth.check_access_token((SECRET,), "app", token, 0).app == "app"


# Several secrets

OTHER, OLD = "another secret", "the oldest secret"
SEVERAL = (OTHER, OLD, SECRET)
PLACES = list(enumerate(SEVERAL))


@pytest.mark.parametrize(("place", "secret"), PLACES)
def test_any_of_several_secrets_verifies(place, secret):
    signature = auth.channel_signature(secret, "1.2", "private-c")
    assert auth.check_channel(KEY, SEVERAL, "1.2", "private-c", f"{KEY}:{signature}") == place
    data = auth.channel_signature(secret, "1.2", "presence-c", "{}")
    assert auth.check_channel(KEY, SEVERAL, "1.2", "presence-c", data, "{}") == place
    assert auth.check_user(KEY, SEVERAL, "1.2", "{}", auth.user_signature(secret, "1.2", "{}")) == place
    token = auth.access_token(secret, "app", "*", "*", 0, 0)
    assert auth.check_access_token(SEVERAL, "app", token, 0).place == place


@pytest.mark.parametrize(("place", "secret"), PLACES)
@pytest.mark.parametrize("more", [{}, {"info": "user_count"}])
def test_any_of_several_secrets_verifies_a_request(place, secret, more):
    used: list[int] = []
    query = query_of(auth.sign_request(KEY, secret, "POST", "/p", more, BODY, THEN))
    assert auth.check_request(KEY, OTHER, "POST", "/p", query, BODY, THEN, SEVERAL[1:], used.append) is bool(more)
    assert used == [place]


def test_a_secret_that_is_not_among_several_is_rejected():
    used: list[int] = []
    pair = SEVERAL[:2]
    assert auth.check_channel(KEY, pair, "1.2", "private-c", auth.channel_signature(SECRET, "1.2", "private-c")) is None
    assert auth.check_user(KEY, pair, "1.2", "{}", auth.user_signature(SECRET, "1.2", "{}")) is None
    with refusal(401, "not signed with the secret"):
        auth.check_access_token(pair, "app", auth.access_token(SECRET, "app", "*", "*", 0, 0), 0)
    with refusal(401, "auth_signature is wrong"):
        auth.check_request(KEY, OTHER, "POST", "/apps/3/events", query_of(GOLDEN), BODY, THEN, (OLD,), used.append)
    assert used == []


@pytest.mark.parametrize("secret", [*SEVERAL, "unknown"])
def test_each_check_compares_all_secrets(monkeypatch, secret):
    """Otherwise its duration shows which secret has signed."""
    signature = auth.channel_signature(secret, "1.2", "private-c")
    user = auth.user_signature(secret, "1.2", "{}")
    query = query_of(auth.sign_request(KEY, secret, "POST", "/p", {}, BODY, THEN))
    token = auth.access_token(secret, "app", "*", "*", 0, 0, user="compared")
    compared = 0

    def compare(a: bytes, b: bytes) -> bool:
        nonlocal compared
        compared += 1
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    auth.check_channel(KEY, SEVERAL, "1.2", "private-c", signature)
    assert compared == 3
    auth.check_user(KEY, SEVERAL, "1.2", "{}", user)
    assert compared == 6
    for check in (
        lambda: auth.check_request(KEY, OTHER, "POST", "/p", query, BODY, THEN, SEVERAL[1:]),
        lambda: auth.check_access_token(SEVERAL, "app", token, 0),
    ):
        try:
            check()
        except Refused:
            assert secret == "unknown"
    # A wrong request is compared twice, by the quick check and by the other one, which also compares the MD5 of the body.
    assert compared == 6 + (7 if secret == "unknown" else 3) + 3


def test_the_place_of_the_secret_needs_no_memory():
    """Python's allocator rounds sizes up to multiples of 16 bytes."""
    size = sys.getsizeof(auth.Claims("app", "*", ("*",), None))
    assert -(-size // 16) == -(-(size - 8) // 16)
