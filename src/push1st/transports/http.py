"""HTTP/1.1 on a socket: parses with httptools, hands requests to the API and WebSocket handshakes to `websocket.py`.

Requests may be pipelined (RFC 9112 §9.3.2): answers go out in order and in one write a turn; while one waits, those
behind it queue, and when they are many the socket is not read. Every stage has a deadline, kept by the sweep.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from fcntl import ioctl
from termios import FIONREAD
from typing import cast

import httptools
import msgspec

from push1st.eager import Suspended, run_eagerly, spawn
from push1st.errors import Refused
from push1st.messages import ClientRequest, Request, Response
from push1st.transports.answers import CLOSE, encoded, error, ok
from push1st.transports.caller import FORWARDING, distrust, is_own_name, visitor_ip
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS
from push1st.transports.handlers import Handler, HandlerRequest, Handshake, Outcome, Pending, Takeover
from push1st.transports.listener import CROWDED_SECONDS, Listener
from push1st.transports.lost import LOST, unread
from push1st.transports.places import Crowded
from push1st.transports.sweep import NEVER

MAX_HEAD = 16_384
"""bytes of a request line with its headers"""
HEAD_SECONDS = 10
"""from the connection, or the first byte of a further request, to the end of the headers"""
BODY_SECONDS = 30
"""from the headers to the end of the body"""
ANSWER_SECONDS = 30
"""to the end of an answer that waits, and for the client to take it"""
MAX_HEADS = 4096
MAX_REMEMBERED = 1024
"""headers of requests that are remembered, and bytes those of one request may have"""
TOO_LONG_HEAD = f"request line and headers have at most {MAX_HEAD} bytes"
IDLE, HEAD, BODY = 0, 1, 2
"""where the parser is"""
MAX_WAITING = 16
"""pipelined requests that may wait before the socket is not read any further"""
PIECE = 2048
"""bytes that the parser gets at once if they may contain several requests; at most 75 of the smallest ones"""
MAX_PIECES = 8
"""pieces in a slice (see `turn`); a piece that completes a request ends its slice"""

_NONE = bytes(4)
_HARMLESS = frozenset((b"connection", b"content-length", b"host"))
_ANSWERED = frozenset((b"connection", b"expect", b"upgrade"))
_NEEDED = frozenset(
    (
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"upgrade",
        *FORWARDING,
    )
)


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether the socket has unread bytes from the client: closing it now would reset the connection."""
    socket = transport.get_extra_info("socket")
    try:
        return socket is not None and ioctl(socket.fileno(), FIONREAD, _NONE) != _NONE
    except (OSError, ValueError):  # the socket has just been closed
        return False


class HttpConnection(asyncio.Protocol):
    """One connection, until it is closed or becomes a WebSocket."""

    __slots__ = (
        "_address",
        "_answers",
        "_body",
        "_busy",
        "_deadline",
        "_distrust",
        "_ended",
        "_eof",
        "_gone",
        "_head",
        "_headers",
        "_held",
        "_held_reading",
        "_keep",
        "_last",
        "_length",
        "_linger",
        "_listener",
        "_parser",
        "_parts",
        "_paused",
        "_peer",
        "_raw",
        "_refused",
        "_rest",
        "_size",
        "_stage",
        "_started",
        "_transport",
        "_upgraded",
        "_url",
        "_waiting",
        "_writing",
        "due_at",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.due_at = NEVER
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._peer = ""
        self._address = ""
        """the name under which `EdgeContext.addresses` counts the connection; "" if it does not"""
        self._distrust = ""
        self._url = b""
        self._raw = 0
        self._ended = -1
        self._headers: dict[bytes, bytes] = {}
        self._head = 0
        self._body = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._length = 0
        self._rest: memoryview | None = None
        self._held_reading = False
        self._stage = IDLE
        self._started = 0
        self._refused: Response | None = None
        self._answers: list[bytes] = []
        self._waiting: deque[tuple[Request | HandlerRequest, Handler | None, bool]] = deque()
        self._held: Pending | None = None
        self._keep = False
        self._busy = False
        self._last = False
        self._linger = 0
        self._eof = False
        """whether the client sends nothing more, because the socket has ended or is lost"""
        self._gone = False
        self._paused = False
        self._writing = True
        self._upgraded: Takeover | None = None
        self._deadline = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        listener = self._listener
        context = listener.context
        self._distrust = self._why_distrust({})
        if listener.whitelist and self._peer and not listener.whitelist.contains(self._peer):
            context.node.metrics.cut_offs["whitelist"] += 1
            self._log("connection closed", 403, "this address is not in api.whitelist")
            self.abort()
            return
        room = context.descriptors.room(self._descriptor, len(context.open), listener.trusting)
        crowded: Crowded = "server"
        if room == "serve" and not listener.trusting:
            crowded = "address"
            address = context.shared_address(self._peer)
            room = context.addresses.enter(address)
            self._address = address if room != "none" else ""
        if room == "none":
            context.refuse_crowded(crowded, self._peer)
            self.abort()
            return
        context.open.add(self)
        if room == "serve":
            self._expect(HEAD_SECONDS)
        else:
            self._listener = listener.crowds[crowded]
            self._expect(CROWDED_SECONDS)

    def _descriptor(self) -> int:
        socket = self._transport.get_extra_info("socket")
        return 0 if socket is None else socket.fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        turn = self._listener.turn
        turn.catch_up()
        if self._upgraded is not None:
            self._upgraded.connection_lost(exc)
            return
        if self._gone:
            return
        if not turn.keeps_lost():
            self._drop_input()
        elif not self._last and (data := unread(self._transport)):
            self.keep(data)
        self._transport = LOST
        self._answers.clear()
        self._writing = True
        self._end_input()

    def _end_input(self) -> None:
        """Handles the end of the client's input: the connection ends when all input is processed and answered."""
        self._eof = True
        self._stop_holding()
        self._serve_waiting()
        if self._rest is not None:
            self._reading()
        else:
            self._check_end()

    def _check_end(self) -> None:
        """Ends the connection if the client sends nothing more, and everything is answered."""
        if not self._eof or self._gone or self._busy or self._waiting or (self._rest is not None and not self._last):
            return
        self._last = True
        if self._transport is LOST:
            self._answers.clear()
            self._listener.context.addresses.leave(self._address)
            self._let_go()
        else:
            self.flush()
            self._transport.close()

    def _drop_input(self) -> None:
        self._last = True
        self._rest = None
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._listener.arrived(self, data)

    def process(self, data: bytes) -> bool:
        if self._last:
            self._rest = None
            if self._upgraded is not None:
                if data:
                    self._listener.arrived(self._upgraded, data)
            elif self._linger:
                self._pass_over(len(data))
            return False
        listener = self._listener
        listener.turn.answering.append(self)
        fresh = self._stage == IDLE and not self._busy and self._rest is None
        if fresh:
            start = data.find(b"\r\n") + 2
            end = data.find(b"\r\n\r\n", start - 2) + 4
            known = end <= MAX_HEAD and listener.heads.get(data[start:end]) == len(data) - end
            if known and (line := listener.line(data[:start])):
                self._started = time.perf_counter_ns()
                self._serve(Request(*line, data[end:], self._distrust, self._started), True)
                return False
        is_left = self._process(data, fresh)
        if self._eof and not is_left:
            self._check_end()
        return is_left

    def keep(self, data: bytes) -> None:
        if not self._last:
            self._rest = memoryview(data if self._rest is None else b"".join((self._rest, data)))
        elif self._upgraded is not None:
            self._listener.arrived(self._upgraded, data)
        elif self._linger:
            self._pass_over(len(data))

    def _process(self, data: bytes, fresh: bool) -> bool:
        """Parses a slice. fresh: whether no input and no request were left before."""
        context = self._listener.context
        before = self._stage, self._started
        over = self._parse(data) if self._rest is None and len(data) <= PIECE else self._parse_slice(data)
        if over or self._rest is not None:
            return self._rest is not None and not self._overfull
        if self._stage != IDLE and not self._busy and (self._stage, self._started) != before:
            self._expect(HEAD_SECONDS if self._stage == HEAD else BODY_SECONDS)
        if self._refused is not None:
            context.node.metrics.refusals[str(self._refused.status)] += 1
            self._last = True
            if not self._busy:
                self._answer(self._refused, False, self._is_head())
        elif fresh and self._stage == IDLE and self._rest is None:
            self._remember(data)
        return False

    def _parse_slice(self, data: bytes) -> bool:
        """Parses one slice of the input, and keeps the rest; returns whether the connection has left HTTP (an upgrade).

        A body whose length is known is one piece, however long.
        """
        rest = self._rest
        if rest is None:
            rest = memoryview(data)
        elif data:
            rest = memoryview(b"".join((rest, data)))
        for _ in range(MAX_PIECES):
            self._rest = rest
            if rest is None or self._overfull:
                return False
            size = max(PIECE, self._length - self._size) if self._stage == BODY else PIECE
            piece = bytes(rest[:size])
            self._rest = rest = rest[size:] if size < len(rest) else None
            if self._parse(piece):
                return True
            if self._last or self._refused is not None:
                self._rest = None
                return False
            if self._ended >= 0:
                break
        return False

    def _parse(self, data: bytes) -> bool:
        """Parses some bytes, and serves the requests that they complete; returns whether the connection has left HTTP."""
        context = self._listener.context
        started = self._started
        self._ended = -1
        try:
            if not self._feed(data):
                return True
        except httptools.HttpParserCallbackError:
            context.failed("request")
            self._refuse(500, "internal error")
        except httptools.HttpParserError as exc:
            if not self._last:  # what follows the last request is passed over
                self._refuse(400, f"not an HTTP/1.1 request: {exc}")
        if self._upgraded is not None:
            self._rest = None
            self._let_go()
            return True
        if self._stage != IDLE:
            # What the parser keeps to itself or passes over is counted here: bytes that surely belong to this request.
            if self._started == started:
                self._raw += len(data)
            elif self._stage == HEAD:
                self._raw = max(0, len(data) - (data.rfind(b"\r\n\r\n") + 4) - max(self._ended, 0))
            if self._stage == HEAD and self._raw > MAX_HEAD:
                self._refuse(431, TOO_LONG_HEAD)
            elif self._is_too_large((self._raw - MAX_HEAD) // 2):
                self._too_large()
        return False

    @property
    def _overfull(self) -> bool:
        """Whether the client must read answers before the server processes more of its requests."""
        return not self._writing or len(self._waiting) >= MAX_WAITING

    def hold_reading(self, hold: bool) -> None:
        self._held_reading = hold
        self._reading()

    def _feed(self, data: bytes) -> bool:
        """Feeds the parser. Returns False after a handshake or the last request: the parser does not get the rest."""
        rest = memoryview(data)
        while True:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as switch:
                rest = rest[switch.args[0] :]
                if self._wants_websocket() or self._last or self._refused is not None or self._parser.get_method() == b"CONNECT":
                    more, self._rest = self._rest, None
                    self._upgrade(bytes(rest) + (b"" if more is None else more))
                    return False
                # Any other upgrade is ignored (RFC 9110 §7.8). This parser treats the following bytes as another protocol, so a
                # new parser gets the same request without its Upgrade.
                head = self._head_without_upgrade()
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(head)
            else:
                return True

    def _wants_websocket(self) -> bool:
        offered = self._headers.get(b"upgrade", b"").lower()
        return offered == b"websocket" or b"websocket" in (name.strip() for name in offered.split(b","))

    def _head_without_upgrade(self) -> bytes:
        """Returns the request line and the needed headers of the current request. `Expect` has been answered already."""
        parser = self._parser
        headers = {name: value for name, value in self._headers.items() if name not in _ANSWERED}
        if not parser.should_keep_alive():
            headers[b"connection"] = b"close"
        lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
        return b"%b %b HTTP/%b\r\n%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode(), lines)

    def _remember(self, data: bytes) -> None:
        """Headers that came with their whole request, and say nothing but its length, are not parsed again.

        Clients on a kept connection send the same headers again and again, only the length changes. The next request
        with the very same bytes behind its request line is known by them (`Handlers.heads`).
        """
        headers = self._headers
        start = data.find(b"\r\n") + 2
        if (
            self._listener.line(data[:start])
            and self._refused is None
            and not self._last
            and headers.keys() <= _HARMLESS
            and self._size <= self._listener.handlers.least_body
            and is_own_name(headers.get(b"host", b""))
            and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        ):
            end = data.find(b"\r\n\r\n", start - 2) + 4
            if len(data) - end == self._size and end - start <= MAX_REMEMBERED:
                heads = self._listener.heads
                if len(heads) >= MAX_HEADS:
                    heads.clear()
                heads[data[start:end]] = self._size

    def eof_received(self) -> bool:
        # What came before the end is still worked on, and answered.
        self._listener.turn.catch_up()
        if self._upgraded is not None:
            return False
        is_secure = self._transport.get_extra_info("sslcontext") is not None
        if is_secure and (self._rest is not None or self._busy):  # uvloop closes the connection now
            self._transport = LOST
        self._end_input()
        return not is_secure and not self._transport.is_closing()

    def pause_writing(self) -> None:
        self._writing = False
        self._reading()

    def resume_writing(self) -> None:
        self._writing = True
        self._reading()

    # httptools

    def on_message_begin(self) -> None:
        self._started = time.perf_counter_ns()
        self._url = b""
        self._headers = {}
        self._head = 0
        self._body = b""
        self._raw = 0
        self._size = 0
        self._stage = HEAD

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head += len(url)
        if self._head > MAX_HEAD:
            self._refuse(431, TOO_LONG_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == BODY:
            return  # trailers mean nothing here
        self._head += len(name) + len(value) + 4
        if self._head > MAX_HEAD:
            self._refuse(431, TOO_LONG_HEAD)
        name = name.lower()
        if name in _NEEDED:
            before = self._headers.get(name)
            # A list may come as several lines (RFC 9110 §5.3).
            self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        self._stage = BODY
        self._length = 0
        headers = self._headers
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(505, "HTTP/1.1 is spoken here")
        if b"," in headers.get(b"host", b"" if version == "1.0" else b","):  # RFC 9112 §3.2
            self._refuse(400, "an HTTP/1.1 request has one Host header")
        if b"content-length" in headers:
            self._length = int(headers[b"content-length"])
            if self._is_too_large(self._length):
                self._too_large()
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":  # RFC 9112 §6.1
            self._refuse(501, "chunked is the only supported transfer coding")
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):  # RFC 9110 §15.5.16
            self._refuse(415, "a compressed body is not supported: send it uncompressed", b"Accept-Encoding: identity\r\n")
        expect = headers.get(b"expect", b"").lower() if version == "1.1" else b""  # RFC 9110 §10.1.1
        if expect not in (b"100-continue", b""):
            self._refuse(417, "100-continue is the only supported expectation")
        if expect and self._refused is None and not self._busy:
            self.flush()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._is_too_large(self._size):
            self._too_large()
        elif not self._body:
            self._body = body
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._stage = IDLE
        self._ended = self._size
        if self._refused is not None or self._last:
            return
        parser = self._parser
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            return  # `_feed` handles the request
        keep = parser.should_keep_alive() and not parser.should_upgrade() and parser.get_http_version() == "1.1"
        body = self._body
        if self._parts:
            body = b"".join((body, *self._parts))
            self._parts = []
        path, query = self._target()
        method = parser.get_method().decode()
        found = self._listener.handlers.find(path)
        handler: Handler | None = None
        request: Request | HandlerRequest
        if found is None:
            request = Request(method, path, query, body, self._why_distrust(self._headers), self._started)
        else:
            handler, args = found
            request = HandlerRequest(
                method, args, query, body, self._visitor(query), self._visitor_ip(), self._listener.crowded, bool(self._address)
            )
        if not keep:
            self._last = True
        if self._busy:
            self._waiting.append((request, handler, keep))
            self._reading()
        else:
            self._begin(request, handler, keep)

    # Serving

    def _target(self) -> tuple[str, str]:
        """Path and query as they are on the request line; an absolute form is cut to them (RFC 9112 §3.2.2)."""
        path, _, query = self._url.decode("latin-1").partition("?")
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path, query

    def _is_head(self) -> bool:
        return self._stage != HEAD and self._parser.get_method() == b"HEAD"

    def _refuse(self, status: int, text: str, headers: bytes = b"") -> None:
        """Nothing more is read; the first reason is the one that is answered."""
        if self._refused is None:
            self._refused = error(status, text, headers)
            self._log("request refused", status, text)

    def _log(self, event: str, code: int, reason: str, **where: str | None) -> None:
        self._listener.context.node.refusals.log(event, code, reason, **where, ip=self._peer)

    def _is_too_large(self, size: int) -> bool:
        """Whether the body is larger than the limit of the app in the request's path."""
        handlers = self._listener.handlers
        return size > handlers.least_body and size > handlers.most_body(self._target()[0])

    def _too_large(self) -> None:
        self._refuse(413, f"a request body has at most {self._listener.handlers.most_body(self._target()[0])} bytes")

    def _visitor_ip(self) -> str:
        return visitor_ip(self._peer, self._headers, self._listener.context.config.server.proxies)

    def _origin(self) -> str | None:
        origin = self._headers.get(b"origin")
        return None if origin is None else origin.decode("latin-1")

    def _visitor(self, query: str) -> ClientRequest:
        cookie, authorization = self._headers.get(b"cookie"), self._headers.get(b"authorization")
        return ClientRequest(
            query,
            self._origin(),
            None if cookie is None else cookie.decode("latin-1"),
            None if authorization is None else authorization.decode("latin-1"),
        )

    def _why_distrust(self, headers: dict[bytes, bytes]) -> str:
        listener = self._listener
        if not listener.trusting:
            return "it came to an address of server.listen"
        config = listener.context.config
        return distrust(self._peer, headers, config.api.trust, config.server.proxies)

    def _serve(self, request: Request, keep: bool) -> None:
        response: Response | Suspended[Response]
        try:
            soon = self._listener.serve(request)
            response = soon if isinstance(soon, Response) else run_eagerly(soon)
        except Exception as exc:
            response = self._failure(exc, request)
        if isinstance(response, Suspended):
            self._busy = True
            self._deadline = NEVER
            spawn(self._wait(response, keep, request))
        else:
            self._answer(response, keep, request.method == "HEAD")

    def _failure(self, exc: Exception, request: Request | HandlerRequest) -> Response:
        """The answer to a request that was refused, or that uncovered a defect of ours."""
        context = self._listener.context
        if isinstance(exc, Refused):
            context.node.metrics.refusals[str(exc.code)] += 1
            path = request.path if isinstance(request, Request) else None
            self._log("request refused", exc.code, exc.text, method=request.method, path=path)
            return error(exc.code, exc.text)
        context.failed("request")
        return error(500, "internal error")

    async def _wait(self, rest: Suspended[Response], keep: bool, request: Request) -> None:
        """Answers a request that waits, then those behind it."""
        try:
            response = await rest
        except Exception as exc:
            response = self._failure(exc, request)
        self._done(response, keep, request.method == "HEAD")

    def _done(self, response: Response, keep: bool, head: bool = False) -> None:
        self._busy = False
        if self._gone:
            return
        self._answer(response, keep, head)
        self._serve_waiting()
        if self._refused is not None and not self._busy and self._upgraded is None:
            self._answer(self._refused, False)
        self._reading()
        self.flush()
        if self._upgraded is not None:
            self._let_go()
        else:
            self._check_end()

    def _serve_waiting(self) -> None:
        while self._waiting and not self._busy:
            self._begin(*self._waiting.popleft())

    def _begin(self, request: Request | HandlerRequest, handler: Handler | None, keep: bool) -> None:
        if isinstance(request, Request):
            self._serve(request, keep)
        elif handler is not None:
            self._handle(request, handler, keep)

    # Requests of handlers

    def _handle(self, request: HandlerRequest, handler: Handler, keep: bool) -> None:
        """Lets a handler serve a request: the request is answered, waits for its response, or the socket changes its owner."""
        try:
            found = handler.handle(request, self)
            begun = run_eagerly(found) if isinstance(found, Coroutine) else found
        except Exception as exc:
            begun = msgspec.structs.replace(self._failure(exc, request), headers=handler.headers)
        if isinstance(begun, Suspended):
            self._busy, self._deadline = True, NEVER
            spawn(self._wait_for_handler(begun, keep, request, handler))
        elif isinstance(begun, Response):
            self._answer(begun, keep, request.method == "HEAD")
        else:
            self._hand_over(begun, keep)

    async def _wait_for_handler(self, rest: Suspended[Outcome], keep: bool, request: HandlerRequest, handler: Handler) -> None:
        """Waits for the outcome of a request, for example because another worker has its session."""
        try:
            found = await rest
        except Exception as exc:
            found = msgspec.structs.replace(self._failure(exc, request), headers=handler.headers)
        if isinstance(found, Response):
            self._done(found, keep)
            return
        self._busy = False
        if self._gone:
            found.lost(self)
            return
        self._hand_over(found, keep)
        if self._upgraded is not None:
            self._let_go()
        elif self._eof:
            self._serve_waiting()
            self._check_end()

    def _hand_over(self, found: Takeover | Pending, keep: bool) -> None:
        if self._eof:
            found.lost(self)
        elif isinstance(found, Takeover) and not self._writing:  # it would not notice the end of the client (`_reading`)
            found.lost(self)
            self.abort()
        elif isinstance(found, Takeover):
            before, self._answers = b"".join(self._answers), []
            self._waiting.clear()
            self._rest = None
            self._last = True
            self._reading()
            self._upgraded = found
            found.address = self._address
            found.start(self._transport, before)
        else:
            self._busy, self._deadline = True, NEVER
            self._held, self._keep = found, keep

    def finish(self, response: Response) -> None:
        """Answers the poll that waits."""
        self._held = None
        self._done(response, self._keep)

    def _stop_holding(self) -> None:
        """The client of a poll that waits is gone."""
        held, self._held = self._held, None
        if held is not None:
            self._busy = False
            held.lost(self)

    def _answer(self, response: Response, keep: bool, head: bool = False) -> None:
        context = self._listener.context
        context.node.metrics.requests[response.status] += 1
        keep = keep and not context.node.draining
        now = context.sweep.now
        if keep and response.status == 200 and not response.headers and not head:
            body = response.body
            self._answers.append(b"%b%d\r\n\r\n%b" % (ok(now, response.content_type, self._listener.kept), len(body), body))
            self._deadline = now + self._listener.keep_alive
            if self._deadline + 1 < self.due_at:
                context.sweep.watch(self, self._deadline)
            return
        self._answers.append(encoded(response, now, self._listener.kept if keep else CLOSE, head))
        if not keep:
            self._last = True
        self._expect(self._listener.keep_alive)

    def flush(self) -> None:
        """Writes the answers of this turn."""
        answers = self._answers
        if answers:
            self._answers = []
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))
            if self._last and not self._busy:
                if self._refused is not None:
                    self._expect(LINGER_SECONDS)
                    self._linger = LINGER_BYTES
                    if self._transport.can_write_eof():
                        self._transport.write_eof()
                    return
                self._expect(ANSWER_SECONDS)
                self._transport.close()

    def _pass_over(self, size: int) -> None:
        """What a client sends on behind the answer that refuses it."""
        self._linger -= size
        if self._linger <= 0:
            self._linger = 0
            self._transport.close()

    def _reading(self) -> None:
        """Pauses reading while the client reads no answers, too many requests wait, or input is unprocessed."""
        overfull = self._overfull
        if self._rest is not None and not overfull and not self._gone:
            self._listener.turn.resume(self)
        pause = overfull or self._held_reading or self._rest is not None
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # Deadlines and the end

    def _expect(self, seconds: float) -> None:
        """Sets the deadline. The sweep is told only of one a second or more before the look it has planned."""
        sweep = self._listener.context.sweep
        self._deadline = deadline = sweep.now + seconds
        if deadline + 1 < self.due_at:
            sweep.watch(self, self._deadline)

    def due(self, now: float) -> float | None:
        if self._deadline == NEVER:
            return now + ANSWER_SECONDS
        if self._deadline > now:
            return self._deadline
        if self._rest is not None and not self._overfull:  # the client waits for the server
            return now + 1
        if self._transport.is_closing() or not self._writing:
            self.abort()
            return None
        if not self._linger and (self._stage != IDLE or not self._started):
            self._listener.context.node.metrics.cut_offs["slow-request"] += 1
            self._log("request refused", 408, "the request took too long")
            self._answer(error(408, "the request took too long"), False)
            self.flush()
        elif not self._last and has_unread(self._transport):
            return now + 1
        self._last = True
        self._transport.close()
        self._deadline = now + ANSWER_SECONDS
        return self._deadline

    def leave(self, code: int, reason: str) -> None:
        """Closes the connection, unless a request is in progress or has unread bytes."""
        if not self._busy and self._rest is None and self._stage == IDLE and not has_unread(self._transport):
            self._last = True
            self._transport.close()

    def abort(self) -> None:
        self._drop_input()
        self._busy = False
        self._transport.abort()
        self._check_end()

    def _let_go(self) -> None:
        """Nothing holds this connection any more; its parser would, and it the parser."""
        context = self._listener.context
        context.open.discard(self)
        context.sweep.forget(self)
        self._gone = True
        del self._parser

    def _upgrade(self, rest: bytes) -> None:
        if self._upgraded is not None:
            self._let_go()
            return
        wants_websocket = self._wants_websocket()
        if wants_websocket and self._busy and not self._last:
            self._refuse(400, "a WebSocket handshake behind a request that is not answered yet")
        if self._refused is not None or self._last or self._eof or not wants_websocket:
            self._last = True
            if self._refused is not None and not self._busy:
                self._answer(self._refused, False, self._is_head())
            self.flush()
            return
        context = self._listener.context
        headers = self._headers
        path, query = self._target()
        ip = self._visitor_ip()
        crowded, address = self._listener.crowded, self._address
        if ip != self._peer and not address and crowded is None and not self._listener.trusting:  # behind a proxy
            address = context.shared_address(ip)
            room = context.addresses.enter(address)
            address = address if room != "none" else ""
            crowded = None if room == "serve" else "address"
        handshake = Handshake(
            self._parser.get_method().decode(),
            path,
            headers.get(b"sec-websocket-key", b"").decode("latin-1"),
            headers.get(b"sec-websocket-version", b"").decode("latin-1"),
            self._visitor(query),
            ip,
            crowded,
        )
        refusal: Response | Takeover
        # Java's client sends `Content-Length: 0` with its handshake.
        has_body = int(headers.get(b"content-length", 0)) > 0 or b"transfer-encoding" in headers
        if self._parser.get_http_version() != "1.1" or has_body:
            refusal = error(400, "a WebSocket handshake is an HTTP/1.1 request without a body")  # RFC 6455 §4.1
        else:
            refusal = self._listener.handlers.upgrade(handshake, self._transport, rest, b"".join(self._answers))
        if not isinstance(refusal, Response):
            refusal.address = address
            self._answers = []
            self._upgraded = refusal
            self._last = True
            self._let_go()
            return
        if not self._address:
            context.addresses.leave(address)
        self._last = True
        where = {"path": handshake.path, "origin": handshake.visitor.origin, "ip": handshake.ip}
        context.node.refusals.log_answer("handshake refused", refusal, **where)
        self._answer(refusal, False)
        self.flush()
