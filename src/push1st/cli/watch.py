"""`push1st watch`: prints what happens on all workers, as the inspector of the console shows it. Each event is a line of JSON."""

import contextlib
import getpass
import http.client
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from push1st.cli.arguments import Arguments
from push1st.cli.client import cause, split_url
from push1st.cli.configuration import load_or_demo, url
from push1st.config.model import Config
from push1st.errors import ClientError, ConfigError, Rejected

VARIABLE = "PUSH1ST_CONSOLE_PASSWORD"
HASH = "scrypt$"
TIMEOUT_SECONDS = 10
MAX_WAIT_SECONDS = 15
"""the longest time between two tries to reconnect"""
MAX_ANSWER_BYTES = 1 << 16
_ORIGIN = re.compile(r"the console's origin, which is (\S+)\Z")


class Refusal(ClientError):
    """An answer that rejects a request. status: its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ConsoleClient:
    """An operator in a shell. address: the URL of the console. origin: its origin in browsers."""

    def __init__(self, address: str, password: str, origin: str) -> None:
        parts = split_url(address, ("http", "https"), "http://127.0.0.1:6003")
        self.address = address.rstrip("/")
        self._password = password
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/")
        self._own = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._origin = origin or self._own
        self._cookie = ""

    def sign_in(self) -> None:
        """Signs in. Raises Refusal, and ClientError without an answer."""
        try:
            self._cookie = self._login()
        except Refusal as exc:
            found = _ORIGIN.search(str(exc))
            if found is None or found[1] == self._origin:
                raise
            self._origin = found[1]  # the console is behind a proxy, and this command connects without the proxy
            self._cookie = self._login()

    def _login(self) -> str:
        factory = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = factory(self._host, self._port, timeout=TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json", "Origin": self._origin, "Push1st-Console": "1"}
        try:
            connection.request("POST", f"{self._path}/api/login", json.dumps({"password": self._password}), headers)
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, UnicodeError) as exc:
            raise ClientError(f"no answer from {self.address}: {cause(exc)}") from exc
        finally:
            connection.close()
        if response.status != 200:
            raise Refusal(response.status, f"{self.address} answered {response.status}: {_error(body)}")
        cookie = response.headers.get("Set-Cookie")
        if not cookie:
            raise ClientError(f"{self.address} is not the console of a Push1st server")
        return str(cookie).partition(";")[0]

    @contextlib.contextmanager
    def live(self) -> Iterator[ClientConnection]:
        """Opens the live channel, and closes it at the end of the block. Raises Refusal, and ClientError without an answer."""
        headers = {"Origin": self._origin, "Cookie": self._cookie}
        target = f"ws{'s' if self._is_secure else ''}{self.address.removeprefix('http').removeprefix('s')}/api/live"
        try:
            connection = connect(target, additional_headers=headers, open_timeout=TIMEOUT_SECONDS, max_size=None)
        except InvalidStatus as exc:
            status = exc.response.status_code
            raise Refusal(status, f"{self.address} answered {status}: {_error(bytes(exc.response.body or b''))}") from exc
        except (OSError, InvalidHandshake) as exc:
            raise ClientError(f"no connection to {self.address}: {cause(exc)}") from exc
        with connection, contextlib.closing(connection):  # closes with code 1000; after an exception, `connect` would send 1011
            yield connection


def run(options: Arguments) -> int:
    """Prints events until Ctrl-C, or at most `--count` events. Raises ConfigError and ClientError.

    If a connection is lost after it was open, the command opens a new one.
    """
    config = load_or_demo(options.config)
    client = ConsoleClient(_address(options, config), _password(config), config.console.origin)
    client.sign_in()
    output, is_expired = Output(f"watching {client.address} (Ctrl-C ends)", options.count), False
    while True:
        try:
            if is_expired:
                client.sign_in()
                is_expired = False
            with client.live() as connection:
                _receive(connection, _filter(options), output)
                return 0
        except ConnectionClosed as exc:
            close = exc.rcvd
            reason = (
                "the connection broke" if close is None else f"the console closed the connection: {close.code} {close.reason}"
            )
        except BrokenPipeError:  # standard output is closed
            raise
        except ClientError as exc:
            if isinstance(exc, Rejected) or not output.was_ready:
                raise
            if isinstance(exc, Refusal) and exc.status == 401:
                if is_expired:  # the password is not valid any more
                    raise
                is_expired = True
                continue
            reason = str(exc)
        wait = min(2.0**output.tries, MAX_WAIT_SECONDS)
        output.tries += 1
        _say(f"{reason}; the next try is in {wait:.0f} s, events may be missing")
        time.sleep(wait)


class Output:
    """The output of the command. ready: the text to print when the watch begins. count: see `--count`."""

    def __init__(self, ready: str, count: int) -> None:
        self._ready = ready
        self._left = count
        self.was_ready = False
        self.tries = 0
        """the number of tries to connect since the last watch began"""

    def begin(self) -> None:
        """Prints, once for each connection, that the watch has begun."""
        _say("watching again" if self.was_ready else self._ready)
        self.was_ready, self.tries = True, 0

    def print(self, event: object) -> bool:
        """Prints an event; returns whether it was the last one."""
        print(json.dumps(event), flush=True)  # ASCII only, so the line is safe for a terminal
        self._left -= 1
        return self._left == 0


def _receive(connection: ClientConnection, filter: dict[str, Any], output: Output) -> None:
    """Prints the events that the filter selects. Returns after the last event that the options request."""
    has_begun = False
    connection.send(json.dumps({"watch": "inspector", "filter": filter}))
    for text in connection:
        try:
            found: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ClientError(f"not a message of the console: {text[:100]!r}") from None
        if "error" in found:
            raise Rejected(str(found["error"]))
        if not has_begun:  # the first message confirms the watch
            has_begun = True
            output.begin()
        for event in found.get("events") or ():
            if output.print(event):
                return
        if found.get("dropped"):
            print(json.dumps({"dropped": found["dropped"]}), flush=True)
    raise ConnectionClosed(connection.protocol.close_rcvd, connection.protocol.close_sent)


def _filter(options: Arguments) -> dict[str, Any]:
    names = ("app", "channel", "socket", "user", "ip")
    chosen = {name: value for name in names if (value := getattr(options, name))}
    return {**chosen, "what": options.what or [], "data": options.data}


def _address(options: Arguments, config: Config) -> str:
    """Returns the URL of the console. Raises ConfigError."""
    if options.url:
        return str(options.url)
    for one in config.console.listen:
        if one.scheme == "tcp":
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(one.host, one.host)  # noqa: S104 - does not bind
            return url(msgspec.structs.replace(one, host=host), "https" if config.console.ssl.enable else "http")
    raise ConfigError("console.listen has no TCP address to connect to: give one with --url")


def _password(config: Config) -> str:
    """Returns the password of the console: from the environment, the configuration or the terminal. Raises ConfigError."""
    variable = os.environ.get(VARIABLE)
    given = variable or config.console.password
    if given and not given.startswith(HASH):
        return given
    if not sys.stdin.isatty():
        why = f"{VARIABLE if variable else 'console.password'} has only its hash" if given else "the variable is not set"
        raise ConfigError(
            f"put the password of the console into {VARIABLE}: {why}, and there is no terminal on which to enter the password"
        )
    try:
        return getpass.getpass("Password of the console: ")
    except EOFError:
        raise ConfigError("the input ended before the password was complete") from None


def _error(body: bytes) -> str:
    """Returns the error in the body of an answer."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
