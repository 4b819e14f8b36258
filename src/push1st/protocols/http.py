"""Decodes HTTP/1.1 requests from bytes (RFC 9110, RFC 9112). This module is pure: it uses no socket and no deadline.

One `RequestDecoder` decodes the input of one connection, in pieces of any size, with the parser of httptools. The decoder bounds
the size of each request, and rejects requests that the server does not support. A decoder discards all further input after a
rejection, after a WebSocket handshake, and after a request whose `HttpRequest.keep` is false.

Most requests of a backend have the same headers, and differ only in path and body. The decoders of a worker share one
`RequestRules`, which remembers headers. `RequestDecoder.known` needs no parser for a request with remembered headers.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

import httptools
import msgspec

from push1st.messages import Request

MAX_HEAD = 16_384
"""the maximum number of bytes of a request line with its headers"""
MAX_HEADS = 4096
MAX_REMEMBERED = 1024
"""`MAX_HEADS`: the maximum number of remembered heads (headers of requests). `MAX_REMEMBERED`: the maximum bytes of a head."""
MAX_LINES = 1024
MAX_LINE = 256
"""`MAX_LINES`: the maximum number of remembered request lines. `MAX_LINE`: the maximum number of bytes of a remembered line."""
TOO_LONG_HEAD = f"request line and headers have at most {MAX_HEAD} bytes"
IDLE, HEAD, BODY = 0, 1, 2
"""the stages of a decoder: between two requests, in the headers of a request, in the body of a request"""

_G = ord("G")
_HARMLESS = frozenset((b"accept", b"accept-encoding", b"connection", b"content-length", b"host", b"user-agent"))
_ANSWERED = frozenset((b"connection", b"expect", b"upgrade"))
_NEEDED = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"idempotency-key",
        b"last-event-id",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"upgrade",
    )
)

Headers: TypeAlias = dict[bytes, bytes]
Line = tuple[str, str, str]
"""the method, path and query of a request line"""


class HttpRequest(msgspec.Struct, frozen=True, gc=False):
    """A complete HTTP request. `headers`: the headers that the server needs, with names in lower case.

    `path`, `query`: the path and the query in the request line. `keep`: whether a further request on the connection is allowed.
    `started`: the time of the first byte of the request, on `RequestRules.clock`.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    keep: bool
    started: int


class Reject(msgspec.Struct, frozen=True, gc=False):
    """The answer to a rejected request, after which the decoder discards all input. `is_head`: whether the answer has no body."""

    status: int
    text: str
    headers: bytes
    is_head: bool


class Upgrade(msgspec.Struct, frozen=True, gc=False):
    """A WebSocket handshake, after which the decoder discards all input.

    `rest`: the input after the handshake. `is_valid`: whether the handshake is an HTTP/1.1 request without a body.
    """

    method: str
    path: str
    query: str
    headers: Headers
    is_valid: bool
    rest: bytes


class Continue(msgspec.Struct, frozen=True, gc=False):
    """The client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1)."""


HttpEvent: TypeAlias = HttpRequest | Reject | Upgrade | Continue
_CONTINUE = Continue()


class RequestRules:
    """The common part of all decoders of a worker: bounds, the names of the headers that the server needs, and remembered heads.

    `least_body`: the lowest value that `max_body` returns for any path.
    `max_body`: a function that returns the maximum number of bytes of a body on a path.
    `forwarding`: the names of headers that proxies add.
    `is_own_name`: a function that returns whether a Host header is an address or `localhost`; a head with another Host is not
    remembered, because `caller.distrust` must check this Host.
    `others`: a regular expression for `/metrics`, and for paths that the API does not serve. Requests to these paths need all
    their headers, so their heads are not remembered.
    `clock`: a function that returns the time in nanoseconds.
    `heads`: a dictionary from remembered headers to the length of the body after these headers.
    """

    def __init__(
        self,
        least_body: int,
        max_body: Callable[[str], int],
        forwarding: frozenset[bytes],
        is_own_name: Callable[[bytes], bool],
        others: str,
        clock: Callable[[], int],
    ) -> None:
        self.least_body = least_body
        self.max_body = max_body
        self.needed = _NEEDED | forwarding
        self.is_own_name = is_own_name
        self.clock = clock
        self.heads: dict[bytes, int] = {}
        self.lines: dict[bytes, Line] = {}
        pattern = re.compile(rb"(?:GET|POST) (?!%b)(/[!-~]*+) HTTP/1\.1\r\n\Z" % others.encode())
        self._match = pattern.match
        self._target = pattern.groups  # the number of the last group in `pattern`; `others` may contain groups, too

    def line(self, line: bytes) -> Line | None:
        """Decodes a request line; remembers a short line without a query. Returns None if the parser must decode the request."""
        found = self._match(line)
        if found is None:
            return None
        path, _, query = found[self._target].decode().partition("?")
        read = "GET" if line[0] == _G else "POST", path, query
        if not query and len(line) <= MAX_LINE:
            if len(self.lines) >= MAX_LINES:
                self.lines.clear()
            self.lines[line] = read
        return read

    def remember(self, headers: bytes, length: int) -> None:
        if len(self.heads) >= MAX_HEADS:
            self.heads.clear()
        self.heads[headers] = length


class RequestDecoder:
    """The decoder of one connection.

    `stage`: IDLE, HEAD or BODY. `started`: the time of the first byte of the newest request; 0 before the first request.
    `is_done`: whether the decoder discards all further input.
    """

    __slots__ = (
        "_body",
        "_ended",
        "_events",
        "_has_begun",
        "_head",
        "_headers",
        "_length",
        "_parser",
        "_parts",
        "_raw",
        "_reject",
        "_rules",
        "_size",
        "_url",
        "is_done",
        "stage",
        "started",
    )

    def __init__(self, rules: RequestRules) -> None:
        self._rules = rules
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[HttpEvent] | None = None
        self._reject: Reject | None = None
        self._url = b""
        self._headers: Headers = {}
        self._head = 0
        """the number of bytes of the request line and the headers that were decoded so far"""
        self._body = b""
        self._parts: list[bytes] | None = None
        """the parts of the body, except the first part, which is in `_body`"""
        self._size = 0
        """the number of bytes of the body that were decoded so far"""
        self._length = 0
        """the length of the body in bytes, if the request has the header Content-Length; else 0"""
        self._raw = 0
        """a lower bound for the size of the current request in bytes; includes bytes that the parser has not reported"""
        self._has_begun = False
        """whether a request began in the current call of `feed`"""
        self._ended = -1
        """the length of the body of the last request that the current call of `feed` completed; -1 if the call completed none"""
        self.stage = IDLE
        self.started = 0
        self.is_done = False

    @property
    def body_left(self) -> int:
        """The number of bytes of the current body that have not arrived; 0 if the length is unknown, or no body is expected."""
        return max(0, self._length - self._size) if self.stage == BODY else 0

    @property
    def has_completed(self) -> bool:
        """Whether the last call of `feed` completed a request."""
        return self._ended >= 0

    def known(self, data: bytes, distrust: str) -> Request | None:
        """Returns the request in `data` if `data` is exactly one request with remembered headers; else None.

        Must be called only in the stage IDLE. `distrust`: see `messages.Request`.
        """
        start = data.find(b"\r\n") + 2
        end = data.find(b"\r\n\r\n", start - 2) + 4
        rules = self._rules
        if end > MAX_HEAD or rules.heads.get(data[start:end]) != len(data) - end:
            return None
        first = data[:start]
        line = rules.lines.get(first) or rules.line(first)
        if line is None:
            return None
        self.started = started = rules.clock()
        method, path, query = line  # measured: `Request(*line, …)` is slower
        return Request(method, path, query, data[end:], distrust, started)

    def remember(self, data: bytes) -> None:
        """Remembers the headers of the newest request, if `data` is exactly this request, and no header affects its handling."""
        rules, headers = self._rules, self._headers
        if self.stage != IDLE or self.is_done or not headers.keys() <= _HARMLESS or self._size > rules.least_body:
            return
        if not rules.is_own_name(headers.get(b"host", b"")):
            return
        if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return
        start = data.find(b"\r\n") + 2
        end = data.find(b"\r\n\r\n", start - 2) + 4
        if len(data) - end == self._size and end - start <= MAX_REMEMBERED and rules.line(data[:start]):
            rules.remember(data[start:end], self._size)

    def feed(self, data: bytes) -> list[HttpEvent]:
        """Decodes some bytes; returns the events that these bytes complete, in order. Discards the bytes if `is_done` is true."""
        self._has_begun = False
        self._ended = -1
        if self.is_done:
            return []
        events = self._events = []
        try:
            self._parse(data, events)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as exc:
            self._refuse(400, f"not an HTTP/1.1 request: {exc}")
        finally:
            self._events = None
        if self.stage != IDLE:
            self._count(data)
        if self._reject is not None and not self.is_done:
            events.append(self._reject)
            self.is_done = True
        return events

    def close(self) -> None:
        """Ends the decoder. Without this call, decoder and parser refer to each other until the garbage collector runs."""
        self.is_done = True
        del self._parser

    def _parse(self, data: bytes, events: list[HttpEvent]) -> None:
        rest: bytes | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as switch:
                if self.is_done or self._reject is not None:
                    return
                rest = memoryview(rest)[switch.args[0] :]
                if self._wants_websocket():
                    events.append(self._upgrade(bytes(rest)))
                    self.is_done = True
                    return
                # Any other upgrade is ignored (RFC 9110 §7.8). This parser would treat further bytes as another protocol, so a
                # new parser gets the same request without its Upgrade header.
                head = self._head_without_upgrade()
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(head)
            else:
                return

    def _count(self, data: bytes) -> None:
        """Updates `_raw`, the size of the incomplete request, after the input `data`. Rejects the request if it is too large."""
        if not self._has_begun:
            self._raw += len(data)
        elif self.stage == HEAD:
            self._raw = max(0, len(data) - (data.rfind(b"\r\n\r\n") + 4) - max(self._ended, 0))
        if self.stage == HEAD and self._raw > MAX_HEAD:
            self._refuse(431, TOO_LONG_HEAD)
        elif self._is_too_large((self._raw - MAX_HEAD) // 2):
            self._refuse_body()

    def _target(self) -> tuple[str, str]:
        """Returns the path and the query in the request line, which may contain an absolute URL (RFC 9112 §3.2.2)."""
        path, _, query = self._url.decode("latin-1").partition("?")
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path, query

    def _refuse(self, status: int, text: str, headers: bytes = b"") -> None:
        """Rejects the current request. If a request has several errors, the client gets the first error."""
        if self._reject is None and not self.is_done:  # after `is_done`, all input is discarded
            is_head = self.stage == BODY and self._parser.get_method() == b"HEAD"
            self._reject = Reject(status, text, headers, is_head)

    def _is_too_large(self, size: int) -> bool:
        """Whether a body of `size` bytes exceeds the maximum for the request's path."""
        rules = self._rules
        return size > rules.least_body and size > rules.max_body(self._target()[0])

    def _refuse_body(self) -> None:
        self._refuse(413, f"a request body has at most {self._rules.max_body(self._target()[0])} bytes")

    def _wants_websocket(self) -> bool:
        offered = self._headers.get(b"upgrade", b"").lower()
        return offered == b"websocket" or b"websocket" in (name.strip() for name in offered.split(b","))

    def _upgrade(self, rest: bytes) -> Upgrade:
        headers = self._headers
        # Java's WebSocket client sends `Content-Length: 0` in its handshake.
        has_body = int(headers.get(b"content-length", 0)) > 0 or b"transfer-encoding" in headers
        is_valid = self._parser.get_http_version() == "1.1" and not has_body  # RFC 6455 §4.1
        return Upgrade(self._parser.get_method().decode(), *self._target(), headers, is_valid, rest)

    def _head_without_upgrade(self) -> bytes:
        """Returns the request line and the needed headers of the current request, except `Upgrade`, `Connection`, `Expect`."""
        parser = self._parser
        headers = {name: value for name, value in self._headers.items() if name not in _ANSWERED}
        if not parser.should_keep_alive():
            headers[b"connection"] = b"close"
        lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
        return b"%b %b HTTP/%b\r\n%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode(), lines)

    # Methods that httptools calls

    def on_message_begin(self) -> None:
        self.started = self._rules.clock()
        self._has_begun = True
        self._url = b""
        self._headers = {}
        self._head = 0
        self._body = b""
        self._parts = None
        self._raw = 0
        self._size = 0
        self.stage = HEAD

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head += len(url)
        if self._head > MAX_HEAD:
            self._refuse(431, TOO_LONG_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.stage == BODY:
            return  # trailers have no effect
        self._head += len(name) + len(value) + 4
        if self._head > MAX_HEAD:
            self._refuse(431, TOO_LONG_HEAD)
        name = name.lower()
        if name in self._rules.needed:
            before = self._headers.get(name)
            # Several headers of one name are one list (RFC 9110 §5.3).
            self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        self.stage = BODY
        self._length = 0
        headers = self._headers
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(505, "only HTTP/1.1 is supported")
        if b"," in headers.get(b"host", b"" if version == "1.0" else b","):  # RFC 9112 §3.2
            self._refuse(400, "an HTTP/1.1 request has one Host header")
        if b"content-length" in headers:
            self._length = int(headers[b"content-length"])
            if self._is_too_large(self._length):
                self._refuse_body()
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":  # RFC 9112 §6.1
            self._refuse(501, "chunked is the only supported transfer coding")
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):  # RFC 9110 §15.5.16
            self._refuse(415, "a compressed body is not supported: send it uncompressed", b"Accept-Encoding: identity\r\n")
        expect = headers.get(b"expect", b"").lower() if version == "1.1" else b""  # RFC 9110 §10.1.1
        if expect not in (b"100-continue", b""):
            self._refuse(417, "100-continue is the only supported expectation")
        if expect and self._reject is None and not self.is_done and self._events is not None:
            self._events.append(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._is_too_large(self._size):
            self._refuse_body()
        elif not self._body:
            self._body = body
        elif self._parts is None:
            self._parts = [body]
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self.stage = IDLE
        self._ended = self._size
        if self._reject is not None or self.is_done or self._events is None:
            return
        parser = self._parser
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            return  # `_parse` handles the request
        keep = parser.should_keep_alive() and not parser.should_upgrade() and parser.get_http_version() == "1.1"
        body = self._body
        if self._parts is not None:
            body = b"".join((body, *self._parts))
            self._parts = None
        path, query = self._target()
        method = parser.get_method().decode()
        self._events.append(HttpRequest(method, path, query, self._headers, body, keep, self.started))
        if not keep:
            self.is_done = True
