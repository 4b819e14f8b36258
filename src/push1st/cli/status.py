"""`push1st status`: shows the state of a running server, by its control socket or else by its API."""

import http.client
import socket
import sys
from collections.abc import Iterator

import msgspec

from push1st.cli.arguments import Arguments
from push1st.cli.client import cause, server_url, split_url
from push1st.cli.configuration import load_or_demo
from push1st.cli.statustext import lines
from push1st.config.model import Config
from push1st.errors import ClientError, ConfigError
from push1st.hooks import shown
from push1st.printable import printable, printable_json
from push1st.process import controlsocket, rundir
from push1st.status import ServerStatus

TIMEOUT_SECONDS = 5
MAX_ANSWER_BYTES = 1 << 24


def run(options: Arguments) -> int:
    """Prints the state of a server; returns 1 if the server is not ready, and 2 if no server was found."""
    try:
        status = _read(options)
    except (ClientError, ConfigError) as exc:
        print(f"push1st status: {printable(str(exc))}", file=sys.stderr)
        return 2
    if options.json:
        print(printable_json(status))
    else:
        for line in lines(status):
            print(printable(line))
    return 0 if status.ready else 1


def _read(options: Arguments) -> ServerStatus:
    """Returns the state of the server that the options select. Raises ClientError and ConfigError if there is no such server."""
    if options.api is not None:
        return _request(options.api)
    found = rundir.running(options.config)
    if len(found) > 1:
        raise ClientError(f"several servers run: {rundir.described(found)}. Select one: -c FILE, or --api URL")
    for folder in found.values():
        if (status := controlsocket.read_status(folder)) is not None:
            return status
    problems = []
    for url in _urls(load_or_demo(options.config)):
        try:
            return _request(url)
        except ClientError as exc:
            problems.append(str(exc))
    which = f" with {options.config}" if options.config else ""
    reason = (
        "the server found by its run folder does not answer"
        if found
        else f"no server was found: no server of this user runs{which}"
    )
    raise ClientError("; ".join([reason, *problems]))


def _urls(config: Config) -> Iterator[str]:
    """Yields the addresses of the API: its Unix sockets, and then a TCP address."""
    yield from (str(one) for one in config.api.listen if one.scheme == "unix")
    if any(one.scheme == "tcp" for one in config.api.listen):
        yield server_url(config, "http")


def _request(url: str) -> ServerStatus:
    """Requests the state from the API of a server. Raises ClientError."""
    connection = _connection(url)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise ClientError(f"no answer from {shown(url)}: {cause(exc)}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise ClientError(f"{shown(url)} answered {response.status}: {body[:500].decode('utf-8', 'replace').strip()}")
    try:
        return msgspec.json.decode(body, type=ServerStatus)
    except msgspec.DecodeError:
        raise ClientError(f"{shown(url)} does not answer with the state of a Push1st server of this version") from None


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith("unix://"):
        return UnixConnection(url.removeprefix("unix://"))
    parts = split_url(url, ("http", "https"), "http://127.0.0.1:6002")
    factory = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return factory(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_SECONDS)


class UnixConnection(http.client.HTTPConnection):
    """A connection to the API on a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
