"""`push1st subscribe`: subscribes to channels by the Pusher protocol, as a browser does, and prints their events.

With `--since` or `--rewind`, the command uses the raw WebSocket protocol, and prints the position of each event.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from push1st import auth
from push1st.channels import kind_of
from push1st.cli.arguments import Arguments
from push1st.cli.client import ServerApp, cause, naming_assumed_app, select, server_url, split_url
from push1st.cli.raw import raw_path, receive
from push1st.errors import ClientError, ConfigError, Rejected
from push1st.printable import printable

Show = Callable[[str, str, str], None]
"""A function that takes the channel, the name and the data of an event, and prints them."""
OPEN_SECONDS = 10


def run(options: Arguments) -> int:
    """Prints at most `--count` events, or all events until the server ends the connection. Raises ConfigError and ClientError."""
    target = select(options)
    config, app = target.config, target.app
    if not app.key:
        raise ConfigError(f"app {app.id} has no key here: give it with -c FILE or --key")

    def show(channel: str, event: str, data: str) -> None:
        print(*map(printable, (channel, event, data)), sep="  ", flush=True)

    def ready() -> None:
        print(f"subscribed to {printable(', '.join(options.channel))} (Ctrl-C ends)", file=sys.stderr, flush=True)

    url = server_url(config, "ws") if options.url is None else options.url
    with naming_assumed_app(target):
        if options.since or options.rewind:
            _resume(options, target, url, ready)
            return 0
        subscribe(url, config.server.app_path, app.key, app.secret, options.channel, show, ready, options.count)
    return 0


def subscribe(
    url: str,
    base: str,
    key: str,
    secret: str,
    channels: list[str],
    show: Show,
    ready: Callable[[], None],
    count: int = 0,
) -> None:
    """Passes every event on the channels to `show`, until the server ends the connection. Raises ClientError.

    url: the URL of the server.
    base: the part of the WebSocket path before the app's key, such as /app/.
    ready: a function that is called once, after the server has confirmed all subscriptions.
    count: the number of events after which the function returns; 0: there is no limit.
    """
    _check(url, secret, channels)
    with _connected(url, f"{base}{quote(key, safe='')}?protocol=7&client=push1st") as connection:
        _receive(connection, key, secret, channels, show, ready, count)


def _resume(options: Arguments, target: ServerApp, url: str, ready: Callable[[], None]) -> None:
    """Prints the earlier events that the options request, and then all later events, with their positions."""
    app, channels = target.app, list(dict.fromkeys(options.channel))

    def show(*fields: str) -> None:
        print(*map(printable, fields), sep="  ", flush=True)

    def report(channel: str, resumed: dict[str, Any]) -> None:
        state = "no event was missed" if resumed.get("recovered") else f"events may be missing ({resumed.get('reason')})"
        text = f"{channel} {resumed.get('position', '-')}: {state}, {resumed.get('replayed', 0)} earlier events"
        print(printable(text), file=sys.stderr, flush=True)

    _check(url, app.secret, channels)
    bases = target.config.server.bases("websocket")
    if not bases:
        raise ConfigError("--since and --rewind use the protocol websocket, which server.proto of the configuration disables")
    path = raw_path(bases[0], app.id, app.key, app.secret, channels, options.since, options.rewind)
    with _connected(url, path) as connection:
        receive(connection, channels, show, report, ready, options.count)


def _check(url: str, secret: str, channels: list[str]) -> None:
    """Raises ClientError if the URL is not valid, or if a channel needs a secret that is missing."""
    split_url(url, ("ws", "wss"), "ws://127.0.0.1:6001")
    missing = [name for name in channels if kind_of(name).needs_auth and not secret]
    if missing:
        raise ClientError(f"{missing[0]} needs the app's secret: give it with -c FILE or --secret")


@contextlib.contextmanager
def _connected(url: str, path: str) -> Iterator[ClientConnection]:
    """Connects to a path of a server, and closes the connection at the end of the block. Raises ClientError."""
    try:
        with (
            connect(f"{url.rstrip('/')}{path}", open_timeout=OPEN_SECONDS) as connection,
            contextlib.closing(connection),  # closes with code 1000; after an exception, `connect` would send code 1011
        ):
            yield connection
    except ConnectionClosed as exc:
        close = exc.rcvd
        if close is None:
            raise ClientError("the connection broke") from exc
        raise Rejected(f"the server closed the connection: {close.code} {close.reason}", close.code) from exc
    except BrokenPipeError:  # standard output is closed (a broken connection to the server raises ConnectionClosed)
        raise
    except (OSError, InvalidHandshake, InvalidURI, UnicodeError) as exc:
        raise ClientError(f"no connection to {url}: {cause(exc)}") from exc


def _receive(
    connection: ClientConnection,
    key: str,
    secret: str,
    channels: list[str],
    show: Show,
    ready: Callable[[], None],
    count: int,
) -> None:
    """Subscribes after the server has accepted the connection, and then reads frames. The parameters are as in `subscribe`."""
    unconfirmed = set(channels)
    for text in connection:
        try:
            frame: dict[str, Any] = json.loads(text)
            event, channel, data = frame["event"], frame.get("channel", ""), frame.get("data", "")
            internal = event.startswith("pusher_internal:")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ClientError(f"the server does not speak Pusher's protocol: it sent {text[:100]!r}") from None
        code = data.get("code") if event == "pusher:error" and isinstance(data, dict) else None
        data = data if isinstance(data, str) else json.dumps(data)
        if event == "pusher:connection_established":
            socket_id = json.loads(data)["socket_id"]
            for name in dict.fromkeys(channels):
                request = {"event": "pusher:subscribe", "data": _subscription(socket_id, key, secret, name)}
                connection.send(json.dumps(request))
        elif event == "pusher_internal:subscription_succeeded":
            unconfirmed.discard(channel)
            if not unconfirmed:
                ready()
        elif isinstance(code, int) and 4000 <= code < 4300:
            continue  # the server sends a close frame next, with the reason that this error event contains
        elif event in ("pusher:error", "pusher:subscription_error"):
            text = f"the server refused {channel}: {data}" if channel else f"the server reported an error: {data}"
            raise Rejected(text, _status(data))
        elif event == "pusher:ping":
            connection.send('{"event":"pusher:pong"}')
        elif event != "pusher:pong" and not internal:
            show(channel, event, data)
            count -= 1
            if count == 0:
                return


def _status(data: str) -> int:
    """Returns the status of a `pusher:subscription_error`; 0 for other errors, and if a limit is reached."""
    try:
        found = json.loads(data)
    except ValueError:
        return 0
    status = found.get("status") if isinstance(found, dict) and found.get("type") != "LimitReached" else None
    return status if isinstance(status, int) else 0


def _subscription(socket_id: str, key: str, secret: str, name: str) -> dict[str, str]:
    """Returns the data of a `pusher:subscribe` event, with a signature if the channel needs a signature."""
    kind = kind_of(name)
    data = {"channel": name}
    if kind.needs_auth:
        if kind.presence:
            data["channel_data"] = json.dumps({"user_id": f"push1st-{socket_id}"})
        data["auth"] = f"{key}:{auth.channel_signature(secret, socket_id, name, data.get('channel_data', ''))}"
    return data
