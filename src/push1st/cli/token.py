"""`push1st token`: makes session tokens and access tokens without a server."""

import re
import sys
import time

from push1st import auth
from push1st.channels import kind_of, user_id_error, wide_name_error
from push1st.cli.arguments import Arguments
from push1st.cli.client import select
from push1st.config.model import DEMO_SECRET
from push1st.errors import ConfigError

_SOCKET_ID = re.compile(r"([A-Za-z0-9_-]+\.)?[0-9]+(\.[0-9]+)?")


def run_session(options: Arguments) -> int:
    """Prints a session token. Raises ConfigError."""
    session, channel = options.socket_id, options.channel
    if not _SOCKET_ID.fullmatch(session):
        swapped = "; it comes before the channel" if _SOCKET_ID.fullmatch(channel) else ""
        raise ConfigError(f"found the socket id {session!r}, allowed: the id of a connection, such as 123.456{swapped}")
    if not kind_of(channel).needs_auth:
        raise ConfigError(
            f"found the public channel {channel!r}, allowed: private-…, presence-… or protected-…; others need no token"
        )
    print(auth.session_token(_signer(options)[1], session, channel, options.data))
    return 0


def run_access(options: Arguments) -> int:
    """Prints an access token. Raises ConfigError."""
    channels = options.channel or ["*"]
    for name in channels:
        if error := wide_name_error(name):
            raise ConfigError(error)
        if note := _doubt(name):
            print(f"note: {note}", file=sys.stderr)
    if options.user is not None and (error := user_id_error(options.user)):
        raise ConfigError(error)
    app, secret = _signer(options)
    channel = channels[0] if len(channels) == 1 else channels
    print(auth.access_token(secret, app, options.origin, channel, options.ttl, int(time.time()), options.user))
    return 0


def _doubt(name: str) -> str:
    """Returns why a channel of an access token probably permits other channels than the caller expects; "" without a reason."""
    if "/" in name:
        return f"{name!r} contains /: if it is a topic of MQTT, exchange / and . to get the name of the channel"
    if "*" in name[:-1] or "+" in name or "#" in name:
        return f"in {name!r}, only a * at the end is a wildcard; +, # and every other * stand for themselves"
    return ""


def _signer(options: Arguments) -> tuple[str, str]:
    """Returns id and secret of the app for which a token is made. Prints a note if the command uses the demo's app."""
    target = select(options)
    app = target.app
    if not app.secret:
        raise ConfigError(f"app {app.id} has no secret, so it has no tokens: select an app with -c FILE, or give --secret")
    if target.assumed:
        secret = "its public secret" if app.secret == DEMO_SECRET else "the given secret"
        another = "-c FILE, or --app with --secret"
        print(f"note: a token for the demo's app {app.id}, signed with {secret}; for another app: {another}", file=sys.stderr)
    return app.id, app.secret
