"""Reads the input of WebSockets: decodes bytes into frames, and frames into commands. `entries` serves the handshakes."""

import asyncio
from collections.abc import Collection, Iterator
from itertools import chain

from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import Command
from push1st.protocols.websocket import Closed, Decoder, Event, Fragment, Pinged, Text, pong_frame, whole_text
from push1st.transports.lost import LOST, detach, unread
from push1st.transports.turn import MAX_WAITING, SLICE_SECONDS
from push1st.transports.websocket_output import CLOSE_SECONDS, WebSocketOutput

MAX_FRAMES = 32
"""maximum number of frames in a slice of input (see `turn`)"""
RECORD_SECONDS = 1
"""the maximum seconds between a client's close frame and the end of the socket, in which the broker stores the page's record"""
SMALL_FRAGMENT = 256
"""size in bytes; the session charges the client for each fragment below this size (`Session.charge`)"""


class WebSocketConnection(WebSocketOutput):
    """The connection of a WebSocket client, which owns the socket after the handshake."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        self._context.arrived(self, data)

    def process(self, data: bytes) -> bool:
        context = self._context
        self._seen = context.sweep.now
        self._pinged = 0
        context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._events = None
            self._discard(len(data))
            return False
        left, until = MAX_FRAMES, 0.0
        try:
            events = self._events
            if events is not None:
                self._events = None
                if data:
                    events = chain(events, self._feed(data))
            elif self._decoder is None and (text := whole_text(data)) is not None:
                events = iter((text,))
            else:
                events = self._feed(data)
            for event in events:
                left -= 1
                if type(event) is Closed:
                    if self._session is not None and self._session.is_busy(self._resume):
                        self._wait(chain((event,), events))
                    else:
                        self._closed_by_client(event.code)
                    return False
                if self._closing or self._slow:
                    pass
                elif type(event) is Text:
                    waiting = self._text(event.text)
                    if waiting and len(waiting) >= MAX_WAITING:
                        assert self._session is not None
                        self._session.is_busy(self._resume)
                        self._wait(events)
                        return False
                elif self._session is not None:
                    self._without_text(self._session, event)
                if not until:
                    until = context.turn.clock() + SLICE_SECONDS
                elif not left or context.turn.clock() > until:
                    self._events = events
                    return True
            if self._decoder is not None and self._decoder.is_between_messages:
                self._decoder = None
        except Disconnect as end:
            self.close(end.code, end.reason)
            self._half_close()
        except Exception:
            self.fail()
            self._half_close()
        return False

    def _feed(self, data: bytes) -> Iterator[Event]:
        """Returns an iterator that decodes `data` into events, one event at a time."""
        decoder = self._decoder
        if decoder is None:
            most = self._protocol.max_payload
            if self._session is not None:
                most = self._context.max_message(self._protocol, self._session.app.config.limits)
            decoder = self._decoder = Decoder(most, self.codec.binary)
        return decoder.feed(data)

    def _without_text(self, session: Session, event: Event) -> None:
        """Handles a control frame or a fragment."""
        if type(event) is Pinged:
            self._context.node.fanout.direct(session, pong_frame(event.payload))
        if type(event) is not Fragment or event.size < SMALL_FRAGMENT:
            session.charge()

    def _text(self, text: str) -> Collection[Command] | None:
        """Decodes and handles a message; returns the session's commands that are not applied yet."""
        session = self._session
        assert session is not None
        try:
            command = self.codec.decode(text)
        except Refused as refused:
            session.refuse(refused)
        else:
            session.handle(command)
        return session.waiting

    def keep(self, data: bytes) -> None:
        self._context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._discard(len(data))
        else:
            self._events = self._feed(data) if self._events is None else chain(self._events, self._feed(data))

    def hold_reading(self, hold: bool) -> None:
        if hold:
            self._transport.pause_reading()
        elif self._events is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _wait(self, events: Iterator[Event]) -> None:
        """Keeps `events` until the session has applied all earlier commands, and stops reading from the socket."""
        self._events = events
        self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Handles the end of the client's input. The connection ends after the session has applied all commands received so far.

        Output that the client does not read within `CLOSE_SECONDS` is discarded. With TLS, uvloop closes the socket at once, and
        all further output is discarded.
        """
        self._context.turn.catch_up()
        is_secure = self._transport.get_extra_info("sslcontext") is not None
        if self._has_input():
            if is_secure:
                self._outlive()
            self._wait_for_end()
            return not is_secure
        if not self._closing and not self._context.ends.add(self):
            if is_secure:
                self._outlive()
            return not is_secure
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + CLOSE_SECONDS)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        detach(self._transport)
        turn = self._context.turn
        turn.catch_up()
        if not self._closing and turn.keeps_lost():
            if self._transport is LOST:
                return
            if data := unread(self._transport):
                self.keep(data)
            if self._has_input():
                self._outlive()
                self._wait_for_end()
                return
        self._lose()

    def _ended_by_client(self) -> None:
        self._closing = True
        self._leave()
        self._transport.close()
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + CLOSE_SECONDS)

    def _has_input(self) -> bool:
        """Returns whether some input of the session is not applied yet."""
        session = self._session
        return session is not None and (session.is_busy(self._resume) or self._events is not None)

    def _wait_for_end(self) -> None:
        """Ends the connection after the session has applied all input."""
        self._wait(chain(self._events or (), (Closed(1006),)))
        if self._session is not None and not self._session.is_busy(self._resume):
            self._resume()

    def _closed_by_client(self, code: int) -> None:
        """Handles a close frame of the client, which begins the closing handshake, or answers the server's close frame."""
        is_answer = self._closing
        self._close(code if code not in (1005, 1006) else 1000, "", announced=False)
        page, self._page = self._page, None
        if page is None:
            self._transport.close()
            return
        # Clients report the end of a connection, and reconnect, only when the server has closed the socket. By then, the broker
        # should have the last record of the page.
        asyncio.get_running_loop().call_later(RECORD_SECONDS, self._transport.close)
        page.finish(self._transport.close, code if is_answer else 0)
