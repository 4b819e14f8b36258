"""Functions that `token`, `publish` and `subscribe` share: they select an app and a server, and describe failures."""

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

import msgspec
from websockets.exceptions import InvalidMessage, InvalidStatus

from push1st.cli.arguments import Arguments
from push1st.cli.configuration import load_or_demo, url
from push1st.config.model import AppConfig, Config
from push1st.config.readers import secrets
from push1st.config.tree import variable
from push1st.errors import ClientError, ConfigError, Rejected

ABOUT_APP = frozenset((401, 403, 404, 4001, 4003))
"""the HTTP statuses and close codes of rejections that a wrong app or secret may cause"""


class ServerApp(msgspec.Struct, frozen=True):
    """An app, and the configuration of its server. `assumed`: whether the user selected no app, so this is the demo's."""

    config: Config
    app: AppConfig
    assumed: bool


def select(options: Arguments) -> ServerApp:
    """Returns the app that the options select. Options override the environment, which overrides the configuration file.

    Raises ConfigError if the options select no app.
    """
    config = load_or_demo(options.config)
    apps = {app.id: app for app in config.apps}
    key = getattr(options, "key", None)
    name = options.app or (next(iter(apps)) if len(apps) == 1 else "")
    app = apps.get(name)
    if app is None and name and (key or options.secret or not options.config):  # the app may exist on another server
        text = os.environ.get("PUSH1ST_APP_SECRET", "")
        app = AppConfig(id=name, key="", **secrets(variable("PUSH1ST_APP_SECRET", ("secret",), text)))
    if app is None:
        problem = f"there is no app {name} in {options.config}." if name else "which app?"
        raise ConfigError(f"{problem} Select one with --app: {', '.join(apps) or 'the configuration has none'}")
    if config.demo and key not in (None, app.key):  # the demo's secret is valid only with the demo's key
        app = msgspec.structs.replace(app, secret="")
    assumed = not (options.config or options.app or key or os.environ.get("PUSH1ST_APP_ID"))
    return ServerApp(config, msgspec.structs.replace(app, key=key or app.key, secret=options.secret or app.secret), assumed)


def server_url(config: Config, scheme: str) -> str:
    """Returns a URL of the configured server, for a client on this machine. `scheme` is http or ws.

    Raises ConfigError if the server listens on Unix sockets only.
    """
    api = scheme == "http" and any(one.scheme == "tcp" for one in config.api.listen)
    part = config.api if api else config.server
    for one in part.listen:
        if one.scheme == "tcp":
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(one.host, one.host)  # noqa: S104 - does not bind
            return url(msgspec.structs.replace(one, host=host), scheme + "s" * part.ssl.enable)
    raise ConfigError(
        f"the configuration has no TCP address to connect to: give one with {'--api' if scheme == 'http' else '--url'}"
    )


@contextlib.contextmanager
def naming_assumed_app(target: ServerApp) -> Iterator[None]:
    """Adds a note to a `Rejected` error that a wrong app may have caused, if no option selects an app: the command used the
    demo's app.
    """
    try:
        yield
    except Rejected as exc:
        if not target.assumed or exc.code not in ABOUT_APP:
            raise
        another = "for another app: -c FILE, or --app with --key and --secret"
        raise Rejected(
            f"{exc}; this is the demo's app {target.app.id} with the key {target.app.key}, {another}", exc.code
        ) from exc


def split_url(text: str, schemes: tuple[str, str], example: str) -> SplitResult:
    """Splits the URL of a server. Raises ClientError if the URL is not valid."""
    try:
        parts = urlsplit(text)
        if parts.scheme in schemes and parts.hostname and (parts.port is None or parts.port):
            return parts
        problem = f"it must begin with {schemes[0]}:// or {schemes[1]}://, and contain a host"
    except ValueError as exc:
        problem = str(exc)
    raise ClientError(f"{text!r} is not the address of a server: {problem}, such as {example}")


def cause(exc: Exception) -> str:
    """Returns the reason for a failed connection, and advice for the user."""
    match exc:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {exc.verify_message}. To trust a PEM file, set SSL_CERT_FILE=FILE"
        case ssl.SSLError():
            return f"the server does not use TLS there ({exc.reason}): try http:// in place of https://, or ws:// of wss://"
        case InvalidStatus():
            return f"it answered with HTTP status {exc.response.status_code}: is the path right, and is it a Push1st server?"
        case http.client.RemoteDisconnected() | ConnectionResetError() | InvalidMessage():
            return (
                "it ended the connection without an answer: if it uses TLS, try https:// in place of http://, or wss:// of ws://"
            )
        case TimeoutError():
            return "it does not answer in time"
        case socket.gaierror():
            return f"its name cannot be resolved: {exc.strerror}"
        case ConnectionRefusedError():
            return f"{exc.strerror or exc}; is the server running?"
        case _:
            return f"{exc}; is it a Push1st server, and is the URL's scheme the right one for its port (with or without TLS)?"
