"""Reads the input of HTTP connections in slices, and upgrades HTTP connections to WebSockets. `protocols.http` decodes requests,
and `pipeline` serves requests.

Clients may pipeline requests. The connection sends answers in the order of the requests, and writes once in each turn of the
event loop. The connection does not read its socket while many requests wait. The worker's timer (`sweep`) enforces deadlines for
headers and bodies.
"""

import asyncio
from typing import cast

from push1st.messages import Request, Response
from push1st.protocols.http import HEAD, IDLE, HttpRequest, Reject, Upgrade
from push1st.transports.answers import error
from push1st.transports.caller import client_ip, client_of
from push1st.transports.handlers import HandlerRequest, Handshake, SocketOwner
from push1st.transports.listener import CROWDED_SECONDS, Listener
from push1st.transports.lost import LOST, detach, unread
from push1st.transports.pages import split_page
from push1st.transports.pipeline import Pipeline
from push1st.transports.places import Crowded

HEAD_SECONDS = 10
"""seconds in which a request's headers must arrive, from the start of the connection or from the first byte of a later request"""
BODY_SECONDS = 30
"""seconds in which a request's body must arrive, from the end of the request's headers"""
PIECE = 2048
"""maximum bytes in one call of the decoder, unless a body is longer; a call completes at most 82 requests of at least 25 bytes"""
MAX_PIECES = 8
"""maximum number of pieces in a slice of input (see `turn`); a slice also ends with a piece that completes a request"""


class HttpConnection(Pipeline):
    """An HTTP connection, until the connection is closed or another protocol takes over the socket."""

    __slots__ = ("_distrust",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._distrust = ""
        """the reason why requests with remembered headers (`RequestRules.heads`) must be signed; "" if they may be unsigned"""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's classes do not inherit `asyncio.Transport`
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        listener = self._listener
        context = listener.context
        self._distrust = self._listener.distrust(self._peer, {})
        if listener.whitelist and self._peer and not listener.whitelist.contains(self._peer):
            context.node.metrics.cut_offs["whitelist"] += 1
            self._log("connection closed", 403, "this address is not in api.whitelist")
            self.abort()
            return
        room = context.descriptors.room(lambda: _descriptor(transport), len(context.open), listener.trusting)
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

    def connection_lost(self, exc: Exception | None) -> None:
        detach(self._transport)
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

    def eof_received(self) -> bool:
        # Requests that arrived before the end of the input are still served and answered.
        self._listener.turn.catch_up()
        if self._upgraded is not None:
            return False
        is_secure = self._transport.get_extra_info("sslcontext") is not None
        if is_secure and (self._rest is not None or self._busy):  # uvloop closes a TLS connection at the end of its input
            self._transport = LOST
        self._end_input()
        return not is_secure and not self._transport.is_closing()

    def _end_input(self) -> None:
        """Handles the end of the client's input. The connection ends after all requests are answered."""
        self._eof = True
        self._stop_holding()
        self._serve_waiting()
        if self._rest is not None:
            self._update_reading()
        else:
            self._check_end()

    def data_received(self, data: bytes) -> None:
        self._listener.arrived(self, data)

    # Input, in slices

    def process(self, data: bytes) -> bool:
        if self._last:
            self._rest = None
            if self._upgraded is not None:
                if data:
                    self._listener.arrived(self._upgraded, data)
            elif self._linger:
                self._discard(len(data))
            return False
        self._listener.turn.answering.append(self)
        decoder = self._decoder
        fresh = decoder.stage == IDLE and not self._busy and self._rest is None
        if fresh and (request := decoder.known(data, self._distrust)) is not None:
            self._serve(request, True)
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
            self._discard(len(data))

    def _process(self, data: bytes, fresh: bool) -> bool:
        """Decodes one slice of the input.

        fresh: whether all earlier input is processed and all earlier requests are answered.
        """
        decoder = self._decoder
        before = decoder.stage, decoder.started
        over = self._decode(data) if self._rest is None and len(data) <= PIECE else self._decode_slice(data)
        if over or self._rest is not None:
            return self._rest is not None and not self._overfull
        if decoder.stage == IDLE:
            if fresh:
                decoder.remember(data)
        elif not self._busy and not self._last and (decoder.stage, decoder.started) != before:
            self._expect(HEAD_SECONDS if decoder.stage == HEAD else BODY_SECONDS)
        return False

    def _decode_slice(self, data: bytes) -> bool:
        """Decodes one slice of the input, and keeps the remaining input for a later slice.

        A body of known length is decoded as one piece, whatever its length. Returns whether another protocol owns the socket now.
        """
        rest = self._rest
        if rest is None:
            rest = memoryview(data)
        elif data:
            rest = memoryview(b"".join((rest, data)))
        decoder = self._decoder
        for _ in range(MAX_PIECES):
            self._rest = rest
            if rest is None or self._overfull:
                return False
            size = max(PIECE, decoder.body_left)
            piece = bytes(rest[:size])
            self._rest = rest = rest[size:] if size < len(rest) else None
            if self._decode(piece):
                return True
            if self._last:
                self._rest = None
                return False
            if decoder.has_completed:
                break
        return False

    def _decode(self, data: bytes) -> bool:
        """Decodes `data`, and serves the requests that `data` completes. Returns whether another protocol owns the socket now."""
        context = self._listener.context
        try:
            events = self._decoder.feed(data)
        except Exception:
            context.failed("request")
            events = [Reject(500, "internal error", b"", False)]
        for event in events:
            if self._last:
                break
            if type(event) is HttpRequest:
                self._receive(event)
            elif type(event) is Reject:
                context.node.metrics.refusals[str(event.status)] += 1
                self._refuse(event.status, event.text, event.headers)
                self._last = True
                if self._refused is not None and not self._busy:
                    self._answer(self._refused, False, event.is_head)
            elif type(event) is Upgrade:
                self._upgrade(event)
                return True
            elif not self._busy:
                self.flush()
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._upgraded is not None:
            self._rest = None
            self._release()
            return True
        return False

    def _receive(self, event: HttpRequest) -> None:
        """Serves a request now, or after the request in progress."""
        listener, headers, keep = self._listener, event.headers, event.keep
        if not keep:
            self._last = True
        found = listener.handlers.find(event.path)
        if found is None:
            distrust = listener.distrust(self._peer, headers)
            key = headers.get(b"idempotency-key")
            kept = headers if listener.keeps_headers else None
            request = Request(event.method, event.path, event.query, event.body, distrust, event.started, key, kept)
            if not self._busy:
                self._serve(request, keep)
                return
            self._waiting.append((request, None, keep))
        else:
            handler, args = found
            client, ip = client_of(headers, event.query), self._client_ip(headers)
            crowded, is_direct = listener.crowded, bool(self._address)
            last_id = headers.get(b"last-event-id", b"").decode("latin-1")
            kept = headers if listener.keeps_headers else None
            routed = HandlerRequest(event.method, args, event.query, event.body, client, ip, crowded, is_direct, last_id, kept)
            if not self._busy:
                self._handle(routed, handler, keep)
                return
            self._waiting.append((routed, handler, keep))
        self._update_reading()

    def _client_ip(self, headers: dict[bytes, bytes]) -> str:
        return client_ip(self._peer, headers, self._listener.proxies)

    def _upgrade(self, event: Upgrade) -> None:
        """Hands over the socket to a WebSocket, or rejects the WebSocket handshake."""
        rest, self._rest = self._rest, None
        if self._busy:
            self._refuse(400, "a WebSocket handshake came before an earlier request was answered")
        if self._refused is not None or self._eof:
            self._last = True
            self.flush()
            return
        context = self._listener.context
        headers = event.headers
        ip = self._client_ip(headers)
        crowded, address = self._listener.crowded, self._address
        if ip != self._peer and not address and crowded is None and not self._listener.trusting:  # a proxy forwards the request
            address = context.shared_address(ip)
            room = context.addresses.enter(address)
            address = address if room != "none" else ""
            crowded = None if room == "serve" else "address"
        handshake = Handshake(
            event.method,
            event.path,
            headers.get(b"sec-websocket-key", b"").decode("latin-1"),
            headers.get(b"sec-websocket-version", b"").decode("latin-1"),
            client_of(headers, event.query),
            ip,
            crowded,
            subprotocols=headers.get(b"sec-websocket-protocol", b"").decode("latin-1"),
            headers=headers if self._listener.keeps_headers else None,
        )
        refusal: Response | SocketOwner
        if not event.is_valid:
            refusal = error(
                400, "a WebSocket handshake is an HTTP/1.1 request without a body", self._listener.headers
            )  # RFC 6455 §4.1
        else:
            refusal = self._listener.handlers.upgrade(
                handshake, self._transport, event.rest + (rest or b""), b"".join(self._answers)
            )
        if not isinstance(refusal, Response):
            refusal.address = address
            self._answers = []
            self._upgraded = refusal
            self._last = True
            self._release()
            return
        if not self._address:
            context.addresses.leave(address)
        self._last = True
        where = {"path": split_page(handshake.path)[1], "origin": handshake.client.origin, "ip": handshake.ip}
        context.node.refusals.log_answer("handshake refused", refusal, **where)
        self._answer(refusal, False)
        self.flush()


def _descriptor(transport: asyncio.Transport) -> int:
    """Returns the number of a connection's file descriptor; 0 if the transport has no socket."""
    socket = transport.get_extra_info("socket")
    return 0 if socket is None else socket.fileno()
