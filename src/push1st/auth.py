"""Makes and checks every signature and token.

This module does not use sockets, the configuration or the clock: secrets and the time are arguments. No error, and no result
of a check, contains a secret or the correct signature.

One secret of an app signs five kinds of text, so no text of one kind may be readable as another kind:

- a channel subscription: `socket_id:channel[:channel_data]` (Pusher protocol, section 9)
- a sign-in: `socket_id::user::user_data` (Pusher protocol, section 5)
- an API request: `METHOD\\n/path\\nname=value&…` (Pusher protocol, section 9)
- an access token, which is a JWT: `base64url.base64url` (Push1st API, section 2)
- the body of a request to a webhook or another backend: `{…}` (Pusher protocol, section 9)

The beginning of a text shows its kind, because a socket id or a channel name contains no colon, line break or brace. A channel
name is not empty, so only a sign-in contains `::` after the socket id. `session_token` signs names that a caller sends, so it
checks the characters of these names.

An app without a secret has public channels only (Push1st API, section 9). For such an app, every check of a signature
fails, because anybody could sign with an empty key.

While its operator rotates the secret, an app has several secrets (decision 0031). The first secret signs, and each secret
verifies. Every check compares a signature with the signatures of all secrets, so that its duration does not show which secret
fits. The place of a secret is its index in the list of the app's secrets.
"""

import hashlib
import hmac
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final
from urllib.parse import unquote_plus

import msgspec

from .channels import pusher_name_error
from .errors import Refused
from .imports import without

with without("cryptography"):  # PyJWT needs it only for other algorithms than HS256
    import jwt

TIMESTAMP_TOLERANCE: Final = 600
"""the number of seconds by which the clocks of an API client and this server may differ (Pusher protocol, section 9)"""
BLOCK: Final = 64
"""the number of bytes in a block of SHA-256"""
ACCESS_TOKEN_BYTES: Final = 8192
"""the maximum number of bytes of an access token in a URL or a header; a longer token is rejected without a check"""
MAX_VERIFIED_TOKENS: Final = 1000
"""the number of access tokens whose signatures are not checked again"""

_SESSION = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_SIGNING = frozenset(("auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"))
NEVER: Final = 1 << 53
"""a time in seconds since 1970 that never comes, and that a float represents exactly"""
_NO_SECRET = "the app has no secret, so nothing can be signed for it"  # noqa: S105 - a message
# By default PyJWT reads the wall clock, and rejects claims that the Push1st API ignores. So `_claims` checks the claims instead.
_SIGNATURE_ONLY: Final[Any] = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}

_by_name = itemgetter(0)


def hmac_hex(secret: str, text: str | bytes) -> str:
    """Returns the HMAC-SHA256 of `text` with the key `secret`: 64 lower-case hex digits.

    The text is encoded as UTF-8. An unpaired surrogate, which JSON can contain, becomes three bytes, so that signing does not
    fail.
    """
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    begun, ended = _keyed(secret)
    inner, outer = begun.copy(), ended.copy()
    inner.update(text)
    outer.update(inner.digest())
    digest: str = outer.hexdigest()
    return digest


@lru_cache(maxsize=256)
def _keyed(secret: str) -> tuple[Any, Any]:
    """Returns HMAC's inner and outer hash objects, which have processed the key but no text yet (RFC 2104 §2).

    The objects are cached, and copied for each text: copying both takes 0.9 µs, and creating both takes 2.0 µs.
    """
    key = secret.encode("utf-8", "surrogatepass")
    if len(key) > BLOCK:
        key = hashlib.sha256(key).digest()
    key = key.ljust(BLOCK, b"\0")
    return hashlib.sha256(bytes(byte ^ 0x36 for byte in key)), hashlib.sha256(bytes(byte ^ 0x5C for byte in key))


def equal(a: str, b: str) -> bool:
    """Whether two texts are equal. The duration of this check does not depend on the position of the first difference."""
    return hmac.compare_digest(a.encode("utf-8", "surrogatepass"), b.encode("utf-8", "surrogatepass"))


def check_bearer(token: str, header: bytes | None) -> bool:
    """Whether a header `Authorization` contains a bearer token (RFC 6750 §2.1).

    `token`: the expected token; "" if no token is configured, and then no header is valid.
    `header`: the value of the header; None if the request has none.
    """
    scheme, _, given = (header or b"").decode("latin-1").partition(" ")
    return equal(given.strip(" "), token) and bool(token) and scheme.lower() == "bearer"


def channel_signature(secret: str, socket_id: str, channel: str, channel_data: str = "") -> str:
    """Returns a subscription's signature (Pusher protocol, section 9): the HMAC of `channel_text`."""
    return hmac_hex(secret, channel_text(socket_id, channel, channel_data))


def channel_text(socket_id: str, channel: str, channel_data: str) -> str:
    """Returns the text to sign for a subscription: `socket_id:channel[:channel_data]`."""
    return f"{socket_id}:{channel}:{channel_data}" if channel_data else f"{socket_id}:{channel}"


def check_channel(
    key: str, secrets: Sequence[str], socket_id: str, channel: str, auth: str, channel_data: str = ""
) -> int | None:
    """Returns the place of the secret whose signature authorises a subscription (Push1st API, section 1); None for no secret.

    An empty channel name, or a name with a colon, is never authorised: the signed text could be read as another kind of text.

    `auth`: the signature, alone or after the app key and a colon.
    """
    if not channel or ":" in channel:
        return None
    return _place(secrets, channel_text(socket_id, channel, channel_data), auth.removeprefix(f"{key}:"))


def _place(secrets: Sequence[str], text: str, signature: str) -> int | None:
    """Returns the place of the secret that made the signature of a text; None if no secret made it. Compares all secrets."""
    found = None
    for place, secret in enumerate(secrets):
        if equal(signature, hmac_hex(secret, text)):
            found = place
    return found


def body_signature(secret: str, body: bytes) -> str:
    """Returns the header `X-Pusher-Signature`, by which a backend verifies a request of this server (Pusher protocol, section 9).

    `body`: a JSON object.
    """
    assert body[:1] == b"{", "the body must not be readable as another kind of signed text"
    return hmac_hex(secret, body)


def user_signature(secret: str, socket_id: str, user_data: str) -> str:
    """Returns the signature for the sign-in of a user (Pusher protocol, section 5): the HMAC of `user_text`."""
    return hmac_hex(secret, user_text(socket_id, user_data))


def user_text(socket_id: str, user_data: str) -> str:
    """Returns the text to sign for the sign-in of a user: `socket_id::user::user_data`."""
    return f"{socket_id}::user::{user_data}"


def check_user(key: str, secrets: Sequence[str], socket_id: str, user_data: str, auth: str) -> int | None:
    """Returns the place of the secret whose signature is valid for the sign-in of a user; None for no secret.

    `auth`: the signature, alone or after the app key and a colon.
    """
    return _place(secrets, user_text(socket_id, user_data), auth.removeprefix(f"{key}:"))


def session_token(secret: str, session: str, channel: str, data: str = "") -> str:
    """Returns the session token of Push1st API, section 1: 64 hex digits that a client sends as `auth`.

    Raises Refused(400) for a channel that begins with `#`, because such channels are reserved for signed-in users. Raises
    Refused(400) also if the text to sign could be read as another kind of text, and Refused(403) if the app has no secret.
    """
    if not secret:
        raise Refused(403, _NO_SECRET)
    if not _SESSION.match(session):
        raise Refused(400, f"session {session[:80]!r} must be 1 to 128 characters of A-Za-z0-9_.-")
    if error := pusher_name_error(channel):
        raise Refused(400, error)
    if channel.startswith("#"):
        raise Refused(400, f"channel {channel!r} is reserved for the user who signed in")
    return channel_signature(secret, session, channel, data)


class Claims(msgspec.Struct, frozen=True, gc=False):
    """The claims of an access token (Push1st API, section 2)."""

    app: str
    """the id of the app whose clients may use the token"""
    origin: str
    """`*`, or the only origin whose requests may use the token"""
    channels: tuple[str, ...]
    """the names of channels; a trailing `*` makes a name a prefix, and `*` alone stands for all channels"""
    exp: int | None
    """the time at which the token expires, in seconds since 1970; None if the token does not expire"""
    sub: str | None = None
    """the id of the user that the token names; None if the token names no user. Only MQTT uses this claim"""
    place: int = 0
    """the place of the secret that signed the token, when the token was checked. This field needs no memory: Python's allocator
    rounds the size of the struct up to a multiple of 16 bytes"""

    def allows(self, channel: str) -> bool:
        """Whether the token authorises `channel`."""
        return any(channel.startswith(name[:-1]) if name.endswith("*") else channel == name for name in self.channels)

    def allows_origin(self, origin: str | None) -> bool:
        """Whether a request with this `Origin` header may use the token. `origin`: None if the request has no such header."""
        return self.origin in ("*", origin)


def access_token(
    secret: str, app: str, origin: str, channel: str | list[str], ttl: int, now: float, user: str | None = None
) -> str:
    """Returns a JWT (HS256) that authorises `channel` on raw WebSockets (Push1st API, section 2).

    `ttl`: the seconds until the token expires; with 0, the token does not expire.
    `now`: the time in seconds since 1970.
    `user`: the id of the user that the token names (`Claims.sub`); None: the token names no user.
    Raises Refused(400) for a negative `ttl` or an empty `origin`, and Refused(403) if the app has no secret.
    """
    if not secret:
        raise Refused(403, _NO_SECRET)
    if ttl < 0:
        raise Refused(400, f"ttl is {ttl}; it counts seconds, 0 for ever")
    if not origin:
        raise Refused(400, "origin is empty; it is * or one origin")
    claims: dict[str, object] = {"app": app, "origin": origin, "channel": channel}
    if ttl:
        claims["exp"] = int(now) + ttl
    if user is not None:
        claims["sub"] = user
    return jwt.encode(claims, _jwt_key(secret), algorithm="HS256")


def check_access_token(secrets: tuple[str, ...], app: str, token: str, now: float) -> Claims:
    """Checks an access token and returns its claims.

    The claim `channel` is required. A token without the claim `origin` is valid for any origin.

    `secrets`: the secrets of the app.
    `app`: the app id that the token must contain.
    `now`: the time in seconds since 1970.
    Raises Refused(401) with the reason.
    """
    if not secrets:
        raise Refused(401, _NO_SECRET)
    if len(token) > ACCESS_TOKEN_BYTES:
        raise Refused(401, f"access token is {len(token)} bytes long, the limit is {ACCESS_TOKEN_BYTES}")
    if not token.isascii():
        raise Refused(401, "access token is not a JWT")
    claims, begins, ends = _verified(secrets, app, token)
    if now < begins:
        raise Refused(401, "access token is not valid yet: its nbf is in the future")
    if now >= ends:  # a token is invalid from the time `exp` on (RFC 7519 §4.1.4)
        raise Refused(401, "access token has expired")
    return claims


def read_access_token(token: str) -> tuple[str, Mapping[str, object]]:
    """Returns the algorithm and the claims of an access token, without a check of its signature, for diagnosis only.

    Raises ValueError if the token is not a JWT.
    """
    try:
        algorithm = jwt.get_unverified_header(token).get("alg")
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise ValueError("not a JWT") from None
    return str(algorithm), claims


def is_signed_with(secret: str, token: str) -> bool:
    """Returns whether a JWT is signed with a secret by HS256."""
    try:
        jwt.decode(token, _jwt_key(secret), algorithms=["HS256"], options=_SIGNATURE_ONLY)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return False
    return bool(secret)


@lru_cache(MAX_VERIFIED_TOKENS)
def _verified(secrets: tuple[str, ...], app: str, token: str) -> tuple[Claims, float, float]:
    """Returns the claims of an access token whose signature is valid, and the times at which the token begins and ends.

    The times are infinite if the token does not have them. Raises Refused(401), which is not cached.

    measured: checking a signature takes 100 µs. All devices of a fleet may have the same token, and then share the claims.
    """
    claims, place = _signed_claims(secrets, token)
    if claims.get("app") != app:
        raise Refused(401, "access token is for another app")
    origin = claims.get("origin", "*")
    if not isinstance(origin, str) or not origin:
        raise Refused(401, "access token's origin is not a text")
    channel = claims.get("channel")
    channels = [channel] if isinstance(channel, str) else channel
    if not isinstance(channels, list) or not all(isinstance(name, str) for name in channels):
        raise Refused(401, "access token's channel is neither a text nor a list of them")
    begins = _seconds(claims, "nbf") if "nbf" in claims else -math.inf
    ends = _seconds(claims, "exp") if "exp" in claims else math.inf
    sub = claims.get("sub")
    exp = min(int(ends), NEVER) if "exp" in claims else None
    return Claims(app, origin, tuple(channels), exp, sub if isinstance(sub, str) else None, place), begins, ends


def _signed_claims(secrets: Sequence[str], token: str) -> tuple[dict[str, Any], int]:
    """Returns the claims of a token, and the place of the secret that signed it. Compares all secrets. Raises Refused(401)."""
    claims: dict[str, Any] | None = None
    found = 0
    for place, secret in enumerate(secrets):
        try:
            claims, found = jwt.decode(token, _jwt_key(secret), algorithms=["HS256"], options=_SIGNATURE_ONLY), place
        except jwt.InvalidAlgorithmError:
            raise Refused(401, "access token is not signed with HS256") from None
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused(401, "access token is not a JWT") from None
    if claims is None:
        raise Refused(401, "access token is not signed with the secret of this app")
    return claims, found


def _seconds(claims: Mapping[str, object], name: str) -> int | float:
    """Returns a claim that must be a time (RFC 7519 §2, NumericDate). Raises Refused(401)."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise Refused(401, f"access token's {name} is not a number")
    return value


def _jwt_key(secret: str) -> bytes:
    """Returns the secret, with zero bytes appended up to 32 bytes, because PyJWT warns about a shorter key at each call.

    HMAC itself appends zero bytes to a short key (RFC 2104 §2), so the signatures do not change.
    """
    return secret.encode("utf-8", "surrogatepass").ljust(32, b"\0")


def sign_request(
    key: str, secret: str, method: str, path: str, params: Mapping[str, str], body: bytes, timestamp: int
) -> dict[str, str]:
    """Returns all query parameters of a signed API request, including `params` (Pusher protocol, section 9).

    `path`: the path in the request line.
    `params`: the other query parameters, not percent-encoded.
    `timestamp`: the time of the request in seconds since 1970.
    Raises ValueError if `params` contains a parameter of the signature, or text that could be read in two ways; also if the app
    has no secret.
    """
    if not secret:
        raise ValueError(_NO_SECRET)
    if taken := _SIGNING.intersection(map(str.lower, params)):
        raise ValueError(f"parameters {sorted(taken)} belong to the signature")
    query = dict(params) | {"auth_key": key, "auth_timestamp": str(timestamp), "auth_version": "1.0"}
    if body:
        query["body_md5"] = hashlib.md5(body, usedforsecurity=False).hexdigest()
    pairs = [(name.lower(), value) for name, value in query.items()]
    if mixed := _ambiguous(pairs):
        raise ValueError(mixed)
    query["auth_signature"] = hmac_hex(secret, _request_text(method, path, pairs))
    return query


def check_request(
    key: str,
    secret: str,
    method: str,
    path: str,
    query: str,
    body: bytes,
    now: float,
    older: tuple[str, ...] = (),
    used: Callable[[int], object] = lambda _: None,
) -> bool:
    """Checks a request's signature (Pusher protocol, section 9). Returns whether `query` has other parameters than those of the
    signature.

    `method`, `path`: as in the request line; the path is not decoded, because the official libraries sign the path they send.
    `query`: the query of the request line, without the `?`.
    `now`: the time in seconds since 1970.
    `older`: the further secrets of the app, which are valid as well.
    `used`: a function that is called with the place of the secret that has signed the request, if the app has several secrets.
    Raises Refused(401) with the exact reason.
    """
    parts = query.split("&")
    if len(parts) == 5 and body and secret:
        # Nearly every library sends a query of only the five parameters of the signature, in the order in which they are signed.
        # So the signed text contains the query without its last part, the signature. If this quick check fails, the code below
        # checks queries of any form, and finds the reason if the request must be rejected.
        key_part, stamp_part, version_part, digest_part, signature_part = parts
        stamp = stamp_part[15:]
        text = f"{method}\n{path}\n{query[: -len(signature_part) - 1]}"
        if (
            key_part == f"auth_key={key}"
            and stamp_part[:15] == "auth_timestamp="
            and stamp.isdecimal()
            and len(stamp) <= 16
            and abs(int(now) - int(stamp)) <= TIMESTAMP_TOLERANCE
            and version_part == "auth_version=1.0"
            and digest_part == f"body_md5={hashlib.md5(body, usedforsecurity=False).hexdigest()}"
            and signature_part.isascii()  # `compare_digest` raises TypeError for text that is not ASCII
        ):
            if not older:
                if hmac.compare_digest(signature_part, "auth_signature=" + hmac_hex(secret, text)):
                    return False
            elif signature_part.startswith("auth_signature="):
                place = _place((secret, *older), text, signature_part[15:])
                if place is not None:
                    used(place)
                    return False
    pairs = _pairs(query)
    given = dict(pairs)
    if len(given) < len(pairs) and (twice := _SIGNING.intersection(_repeated(pairs))):
        raise Refused(401, f"{min(twice)} is given more than once")
    try:
        auth_key, timestamp = given["auth_key"], given["auth_timestamp"]
        version, signature = given["auth_version"], given["auth_signature"]
    except KeyError as exc:
        raise Refused(401, f"{exc.args[0]} is missing in the query") from None
    if version != "1.0":
        raise Refused(401, f"auth_version is {version[:20]!r}, only '1.0' is known")
    if auth_key != key:
        raise Refused(401, "auth_key is not the key of this app")
    if not secret:
        raise Refused(401, _NO_SECRET)
    _check_timestamp(timestamp, now)
    digest = given.get("body_md5")
    if digest is None:
        if body:
            raise Refused(401, "body_md5 is missing in the query, and there is a body")
    elif not equal(digest, hashlib.md5(body, usedforsecurity=False).hexdigest()):
        raise Refused(401, f"body_md5 is not the MD5 of the {len(body)} bytes received")
    pairs.remove(("auth_signature", signature))
    place = _place((secret, *older), _request_text(method, path, pairs), signature)
    if place is None:
        raise Refused(401, "auth_signature is wrong: sign METHOD, path and sorted parameters, a line each, with the app's secret")
    if older:
        used(place)
    return not _SIGNING.issuperset(given)


def _check_timestamp(text: str, now: float) -> None:
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise Refused(401, f"auth_timestamp is {text[:20]!r}, not a number of seconds since 1970")
    late = int(now) - int(text)
    if abs(late) > TIMESTAMP_TOLERANCE:
        side = "past" if late > 0 else "future"
        raise Refused(401, f"auth_timestamp is {abs(late)} s in the {side}, the limit is {TIMESTAMP_TOLERANCE} s")


def _pairs(query: str) -> list[tuple[str, str]]:
    """Returns the query's parameters in order, unescaped as in an HTML form (`+` is a space), with lower-case names."""
    pairs = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if part:
            pairs.append((name.lower(), value))
    if "%" not in query and "+" not in query:
        return pairs
    try:
        pairs = [(unquote_plus(name, errors="strict").lower(), unquote_plus(value, errors="strict")) for name, value in pairs]
    except UnicodeDecodeError:
        raise Refused(401, "the query is not UTF-8") from None
    if mixed := _ambiguous(pairs):
        raise Refused(401, mixed)
    return pairs


def _repeated(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Returns the names that occur more than once."""
    return {name for name, times in Counter(map(_by_name, pairs)).items() if times > 1}


def _ambiguous(pairs: Iterable[tuple[str, str]]) -> str | None:
    """Returns the error for a parameter that could be read in two ways in the text to sign; None if there is no such parameter.

    The signed text is unescaped, so `a=1%26b=2` and `a=1&b=2` have the same signature. So an attacker who has one signed
    request could send the other request. No parameter of the API needs the characters `&` and `=`.
    """
    for name, value in pairs:
        if "&" in name or "=" in name or "&" in value:
            return f"parameter {name[:80]!r} cannot be signed: an & in it, or an = in its name, can be read in two ways"
    return None


def _request_text(method: str, path: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Returns the text to sign for a request. Parameters with equal names, such as `info[]`, keep their order."""
    return f"{method}\n{path}\n" + "&".join(map("=".join, sorted(pairs, key=_by_name)))
