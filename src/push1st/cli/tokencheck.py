"""`push1st token check`: reports why the server accepts or rejects an access token, without a server.

The command checks each part of a token by itself, so that its answer names every mistake and not only the first. At the end it
calls the same function as the server. No answer contains the token or a secret.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from push1st import auth
from push1st.channels import covers, kind_of, user_id_error, wide_name_error
from push1st.cli.arguments import Arguments
from push1st.cli.client import select
from push1st.cli.configuration import load_or_demo
from push1st.config.model import AppConfig
from push1st.errors import Refused
from push1st.hooks.formats import matcher
from push1st.printable import printable, printable_json
from push1st.transports.admission import origin_allowed

MAX_INPUT = 2 * auth.ACCESS_TOKEN_BYTES
"""the maximum number of characters that the command reads from the standard input"""
MAX_SHOWN = 20
"""the maximum number of channels that the answer names"""
MAX_CHARACTERS = 160
"""the maximum number of characters that the answer shows of a text in the token"""
Show = Callable[[str], str]
"""a function that returns a text of the token for the answer"""
_SESSION_TOKEN = re.compile(r"([^:]+:)?[0-9a-f]{64}\Z")
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60))


class TokenCheck(msgspec.Struct, frozen=True):
    """The result for one part of a token.

    part: `form`, `app`, `signature`, `nbf`, `exp`, `channel`, `origin`, `user`, or `token` for the whole.
    passed: whether the server accepts this part.
    text: the content of the part, and if the server rejects it, the remedy.
    """

    part: str
    passed: bool
    text: str


class TokenReport(msgspec.Struct, frozen=True):
    """The answer of `push1st token check`. app: the id of the app whose secret was used; None if no app was found."""

    accepted: bool
    app: str | None
    checks: list[TokenCheck]


class Circumstances(msgspec.Struct, frozen=True):
    """The circumstances in which a client uses a token.

    now: the time in seconds since 1970.
    channel, origin: a channel and the origin of a web page for which the token is checked; None: no particular one.
    """

    now: float
    channel: str | None = None
    origin: str | None = None


def run(options: Arguments) -> int:
    """Prints the result for each part of the token; returns 1 if the server would reject the token. Raises ConfigError."""
    token = sys.stdin.readline(MAX_INPUT) if options.token == "-" else options.token  # noqa: S105 - not a token
    token = token.strip().removeprefix("Bearer ")
    found = report(token, _apps(options, token), Circumstances(time.time(), options.channel, options.origin))
    if options.json:
        print(printable_json(found))
    else:
        for line in _lines(found):
            print(printable(line))
    return 0 if found.accepted else 1


def _apps(options: Arguments, token: str) -> list[AppConfig]:
    """Returns the app that the options or the token name, and then the other apps of the configuration. Raises ConfigError."""
    config = load_or_demo(options.config)
    apps = {app.id: app for app in config.apps}
    if options.app is None:
        claimed = _claimed(token)
        options.app = claimed if claimed in apps else None
    if options.app is None and len(apps) > 1:
        return []
    target = select(options)
    if target.assumed and not options.json:
        print(
            f"note: checked with the demo's app {target.app.id}; for another app: -c FILE, or --app with --secret",
            file=sys.stderr,
        )
    return [target.app, *(app for app in config.apps if app.id != target.app.id)]


def _claimed(token: str) -> str | None:
    """Returns the id of the app that a token names; None if it names no app."""
    try:
        app = auth.read_access_token(token)[1].get("app")
    except ValueError:
        return None
    return app if isinstance(app, str) else None


def report(token: str, apps: list[AppConfig], where: Circumstances) -> TokenReport:
    """Returns the result for each part of an access token.

    apps: the app for whose clients the token is checked, and then the other apps of the configuration; empty: no app was found.
    """
    app = apps[0] if apps else None
    checks = list(_checks(token, app, apps[1:], where))
    if app is not None and all(one.passed for one in checks):
        try:
            auth.check_access_token(app.secrets, app.id, token, where.now)
        except Refused as refused:
            checks.append(TokenCheck("token", False, refused.text))
    return TokenReport(all(one.passed for one in checks), None if app is None else app.id, checks)


def _checks(token: str, app: AppConfig | None, others: list[AppConfig], where: Circumstances) -> Iterator[TokenCheck]:
    """Yields the result for each part of a token, in the order in which a reader corrects the parts."""
    try:
        algorithm, claims = auth.read_access_token(token)
    except ValueError:
        yield TokenCheck("form", False, _form(token))
        return
    if len(token) > auth.ACCESS_TOKEN_BYTES:
        yield TokenCheck("form", False, f"{len(token)} bytes long, the limit is {auth.ACCESS_TOKEN_BYTES}: name fewer channels")
    secrets = (secret for one in (app, *others) if one is not None for secret in one.secrets)
    shown = partial(_shown, sorted(secrets, key=len, reverse=True))  # a secret may begin with another one
    yield _app(claims.get("app"), app, shown)
    if app is not None:
        yield _signature(token, shown(algorithm), app, others)
    yield from _times(claims, where.now)
    yield _channel(claims.get("channel"), app, where.channel, shown)
    yield _origin(claims.get("origin", "*"), app, where.origin, shown)
    yield _user(claims.get("sub"), shown)


def _form(token: str) -> str:
    """Returns why a text is not an access token."""
    if _SESSION_TOKEN.match(token):
        return "a session token, which authorises one subscription of a Pusher client: this command checks access tokens only"
    if token.count(".") == 2:
        return "not a JWT: its three parts are not JSON in base64url, so a part of it may be missing or changed"
    return "not a JWT, which has three parts with dots between: make an access token with push1st token access"


def _app(claim: object, app: AppConfig | None, show: Show) -> TokenCheck:
    if not isinstance(claim, str):
        return TokenCheck("app", False, "missing, or not a text: put the app's id into the claim app")
    shown = show(claim)
    if app is None:
        return TokenCheck(
            "app", False, f"{shown}, which the configuration does not have: the claim app is the app's id, not its key"
        )
    if claim != app.id:
        same = " (the app's key)" if claim == app.key else ""
        return TokenCheck("app", False, f"{shown}{same}, but the app's id is {app.id}: put this id into the claim app")
    if not app.enable:
        return TokenCheck("app", False, f"{shown}, which is disabled: remove enable: false from its configuration")
    return TokenCheck("app", True, shown)


def _signature(token: str, algorithm: str, app: AppConfig, others: list[AppConfig]) -> TokenCheck:
    if not app.secrets:
        return TokenCheck(
            "signature", False, f"app {app.id} has no secret here: give it one in the configuration, or pass --secret"
        )
    if algorithm != "HS256":
        return TokenCheck("signature", False, f"made with {algorithm}: sign the token with HS256")
    if (place := _place(app, token)) is not None:
        number = f"secret {place + 1} of {len(app.secrets)}" if place else "the secret"
        older = f", until `push1st app retire {app.id}` removes it: sign new tokens with the first secret" if place else ""
        return TokenCheck("signature", True, f"made with {number} of app {app.id}{older}")
    if other := next((one for one in others if _place(one, token) is not None), None):
        remedy = f"sign the token with the secret of app {app.id}"
        return TokenCheck("signature", False, f"made with the secret of app {other.id}: {remedy}")
    if auth.is_signed_with(app.key, token):
        return TokenCheck("signature", False, "made with the app's key: sign the token with the app's secret")
    reason = "the configuration may differ from the backend's, or the token was changed"
    return TokenCheck("signature", False, f"not made with the secret of app {app.id}: {reason}")


def _place(app: AppConfig, token: str) -> int | None:
    """Returns the place of the secret of an app that signed a token; None if no secret of the app did."""
    return next((place for place, secret in enumerate(app.secrets) if auth.is_signed_with(secret, token)), None)


def _times(claims: Mapping[str, object], now: float) -> Iterator[TokenCheck]:
    for name in ("nbf", "exp"):
        value = claims.get(name)
        if name not in claims:
            if name == "exp":
                yield TokenCheck(name, True, "none: the token never expires")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield TokenCheck(name, False, "not a number: it is a time in seconds since 1970")
        elif name == "nbf":
            remedy = "" if now >= value else ": wait, or compare the clocks of the backend and of this machine"
            yield TokenCheck(name, now >= value, f"valid from {_date(value)}, {_relative(value, now)}{remedy}")
        elif now < value:
            yield TokenCheck(name, True, f"expires {_date(value)}, {_relative(value, now)}")
        else:
            remedy = "make a new token, or compare the clocks of the backend and of this machine"
            yield TokenCheck(name, False, f"expired {_date(value)}, {_relative(value, now)}: {remedy}")


def _channel(claim: object, app: AppConfig | None, channel: str | None, show: Show) -> TokenCheck:
    names = [claim] if isinstance(claim, str) else claim
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return TokenCheck("channel", False, "missing, or neither a text nor a list of texts: name a channel, or * for all")
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    allowed = (", ".join(map(show, names[:MAX_SHOWN])) or "none") + more
    if channel is None:
        return TokenCheck("channel", True, f"allows {allowed}")
    kind = kind_of(channel)
    if problem := wide_name_error(channel):
        return TokenCheck("channel", False, problem)
    if app is not None and not covers(app.channels, kind):
        return TokenCheck("channel", False, f"app {app.id} has no {kind.type} channels: add {kind.type} to its channels")
    if not kind.needs_auth:
        return TokenCheck("channel", True, f"{channel} is public and needs no token")
    if auth.Claims("", "*", tuple(names), None).allows(channel):
        return TokenCheck("channel", True, f"allows {channel}")
    if app is not None and any("subscribe" in one.on and matcher(one.filter)(channel) for one in app.authorize):
        return TokenCheck("channel", True, f"allows {allowed}, but the app's backend decides about {channel}")
    return TokenCheck("channel", False, f"allows {allowed}, but not {channel}: name it in the claim channel, or a prefix with *")


def _origin(claim: object, app: AppConfig | None, origin: str | None, show: Show) -> TokenCheck:
    if not isinstance(claim, str) or not claim:
        return TokenCheck("origin", False, "not a text: it is one origin such as https://shop.example, or * for all")
    text = "any" if claim == "*" else f"only web pages of {show(claim)}, and no client without the header Origin"
    if origin is None:
        return TokenCheck("origin", True, text)
    if claim not in ("*", origin):
        return TokenCheck("origin", False, f"{text}; not {origin}: put that origin into the claim origin")
    if app is not None and not origin_allowed(origin, app.origins):
        return TokenCheck("origin", False, f"{text}; but the origins of app {app.id} do not contain {origin}: add it there")
    return TokenCheck("origin", True, text)


def _user(claim: object, show: Show) -> TokenCheck:
    if not isinstance(claim, str):
        ignored = "" if claim is None else ": the claim sub is not a text, so the server ignores it"
        return TokenCheck("user", True, f"none{ignored}")
    if problem := user_id_error(claim):
        return TokenCheck("user", False, f"{show(problem)}: MQTT clients with this token are rejected; change the claim sub")
    return TokenCheck("user", True, f"{show(claim)} (for MQTT clients)")


def _lines(found: TokenReport) -> Iterator[str]:
    """Yields the lines of a report."""
    of = f" for clients of app {found.app}" if found.app else ""
    yield ("accepted" if found.accepted else "rejected") + of
    for one in found.checks:
        yield f"  {one.part:<10} {'good' if one.passed else 'WRONG':<6} {one.text}"


def _shown(secrets: Sequence[str], text: str) -> str:
    """Returns a text of a token, shortened and without secrets, because a backend may put its secret into a claim by mistake."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _date(seconds: float) -> str:
    """Returns a time in seconds since 1970 as text, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "in a year that does not exist"


def _relative(seconds: float, now: float) -> str:
    """Returns the distance of a time from now, in words, rounded down."""
    distance = abs(seconds - now)
    unit, size = next(((unit, size) for unit, size in _UNITS if distance >= 2 * size), ("seconds", 1))
    return f"in {int(distance // size)} {unit}" if seconds > now else f"{int(distance // size)} {unit} ago"
