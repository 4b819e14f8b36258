"""A small client for trying things: what `push1st publish` and `push1st subscribe` do.

It speaks the signed HTTP API and the Pusher protocol as any backend and any browser would.
"""

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from push1st import auth
from push1st.channels import kind_of
from push1st.errors import ClientError, Rejected

Show = Callable[[str, str, str], None]
"""Gets channel, event and data."""


def publish(api: str, base: str, app: str, key: str, secret: str, channels: list[str], event: str, data: object) -> str:
    """Publishes an event and returns the server's answer; signed if there is a secret. Raises ClientError.

    base: the path of the API, such as /apps/.
    """
    url = _address(api, ("http", "https"), "http://127.0.0.1:6002")
    path = f"{url.path.rstrip('/')}{base}{quote(app, safe='')}/events"
    body = json.dumps({"name": event, "channels": channels, "data": data}).encode()
    target = path
    if secret:
        target = f"{path}?{urlencode(auth.sign_request(key, secret, 'POST', path, {}, body, int(time.time())))}"
    factory = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = factory(url.hostname or "127.0.0.1", url.port, timeout=10)
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise ClientError(f"no answer from {api}: {_why(exc)}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise Rejected(f"{api} answered {response.status}: {answer}")
    return answer


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
    """Shows every event on the channels (channel, event, data), until the server ends or `count` have come.

    base: the path before the key, such as /app/. ready: called once all channels are subscribed to. Raises ClientError.
    """
    _address(url, ("ws", "wss"), "ws://127.0.0.1:6001")
    missing = [name for name in channels if kind_of(name).needs_auth and not secret]
    if missing:
        raise ClientError(f"{missing[0]} needs the app's secret: give it with -c FILE or --secret")
    try:
        with (
            connect(f"{url.rstrip('/')}{base}{quote(key, safe='')}?protocol=7&client=push1st", open_timeout=10) as connection,
            contextlib.closing(connection),  # by itself a connection closes with 1011 after an exception
        ):
            _listen(connection, key, secret, channels, show, ready, count)
    except ConnectionClosed as end:
        close = end.rcvd
        if close is None:
            raise ClientError("the connection broke") from end
        raise Rejected(f"the server closed the connection: {close.code} {close.reason}") from end
    except BrokenPipeError:  # of standard output; a broken connection is a ConnectionClosed
        raise
    except (OSError, InvalidHandshake, InvalidURI, UnicodeError) as exc:
        raise ClientError(f"no connection to {url}: {_why(exc)}") from exc


def _address(text: str, schemes: tuple[str, str], example: str) -> SplitResult:
    """Splits a server's address. Raises ClientError if the address is not valid."""
    try:
        url = urlsplit(text)
        if url.scheme in schemes and url.hostname and (url.port is None or url.port):
            return url
        wrong = f"it must begin with {schemes[0]}:// or {schemes[1]}://, and contain a host"
    except ValueError as exc:
        wrong = str(exc)
    raise ClientError(f"{text!r} is not the address of a server: {wrong}, such as {example}")


def _why(exc: Exception) -> str:
    """Returns why a connection failed, and what to check."""
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


def _listen(
    socket: ClientConnection,
    key: str,
    secret: str,
    channels: list[str],
    show: Show,
    ready: Callable[[], None],
    count: int,
) -> None:
    waiting = set(channels)
    for text in socket:
        try:
            frame: dict[str, Any] = json.loads(text)
            event, channel, data = frame["event"], frame.get("channel", ""), frame.get("data", "")
            internal = event.startswith("pusher_internal:")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ClientError(f"the server does not speak Pusher's protocol: it sent {text[:100]!r}") from None
        code = data.get("code") if event == "pusher:error" and isinstance(data, dict) else None
        data = data if isinstance(data, str) else json.dumps(data)
        if event == "pusher:connection_established":
            for name in dict.fromkeys(channels):
                socket.send(
                    json.dumps({"event": "pusher:subscribe", "data": _wanted(json.loads(data)["socket_id"], key, secret, name)})
                )
        elif event == "pusher_internal:subscription_succeeded":
            waiting.discard(channel)
            if not waiting:
                ready()
        elif isinstance(code, int) and 4000 <= code < 4300:
            continue  # the close frame that follows has the same reason
        elif event in ("pusher:error", "pusher:subscription_error"):
            raise Rejected(f"the server refused {channel}: {data}" if channel else f"the server reported an error: {data}")
        elif event == "pusher:ping":
            socket.send('{"event":"pusher:pong"}')
        elif event != "pusher:pong" and not internal:
            show(channel, event, data)
            count -= 1
            if count == 0:
                return


def _wanted(socket_id: str, key: str, secret: str, name: str) -> dict[str, str]:
    kind = kind_of(name)
    wanted = {"channel": name}
    if kind.needs_auth:
        if kind.presence:
            wanted["channel_data"] = json.dumps({"user_id": f"push1st-{socket_id}"})
        wanted["auth"] = f"{key}:{auth.channel_signature(secret, socket_id, name, wanted.get('channel_data', ''))}"
    return wanted
