"""Writes the answers of HTTP connections, enforces the deadlines of clients, and ends connections. `http` reads the input, and
`pipeline` serves the requests.
"""

import asyncio

from push1st.messages import Request, Response
from push1st.protocols.http import IDLE, RequestDecoder
from push1st.transports.answers import CLOSE, encoded, error, ok
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS
from push1st.transports.handlers import Handler, HandlerRequest, SocketOwner
from push1st.transports.listener import Listener
from push1st.transports.lost import LOST, has_unread
from push1st.transports.sweep import NEVER

ANSWER_SECONDS = 30
"""seconds in which a client must read a connection's final answer; also seconds between two checks of a request in progress"""
MAX_WAITING = 16
"""number of pipelined requests; while at least `MAX_WAITING` requests wait, the connection does not read its socket"""


class HttpOutput(asyncio.Protocol):
    """Writes the answers of an HTTP connection, and ends the connection.

    _last: whether the connection decodes no further request.
    _busy: whether a request is in progress.
    """

    __slots__ = (
        "_address",
        "_answers",
        "_busy",
        "_deadline",
        "_decoder",
        "_eof",
        "_gone",
        "_held_reading",
        "_last",
        "_linger",
        "_listener",
        "_paused",
        "_peer",
        "_refused",
        "_rest",
        "_transport",
        "_upgraded",
        "_waiting",
        "_writing",
        "due_at",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport
        self._decoder = RequestDecoder(listener.handlers.rules)
        self._peer = ""
        self._address = ""
        """the address or network for which `EdgeContext.addresses` counts the connection; "" if the connection is not counted"""
        self._rest: memoryview | None = None
        """input that the decoder has not received yet"""
        self._waiting: list[tuple[Request | HandlerRequest, Handler | None, bool]] = []
        """waiting requests, each with its handler (None for the API), and whether the connection stays open after the answer"""
        self._answers: list[bytes] = []
        self._refused: Response | None = None
        """the answer to a rejected request or handshake, after which the connection decodes no further input"""
        self._busy = False
        self._last = False
        self._linger = 0
        """remaining bytes of input to discard after a rejection, before the connection closes the socket; 0 if none"""
        self._eof = False
        """whether no more input can arrive, because the input has ended or the connection is lost"""
        self._gone = False
        self._paused = False
        self._held_reading = False
        self._writing = True
        self._upgraded: SocketOwner | None = None
        """the object that has taken over the socket"""
        self._deadline = 0.0
        self.due_at = NEVER

    @property
    def is_new(self) -> bool:
        """See `turn.Connection`."""
        return not self._decoder.started

    def process(self, data: bytes) -> bool:
        """See `turn.Connection`."""
        raise NotImplementedError

    def keep(self, data: bytes) -> None:
        """See `turn.Connection`."""
        raise NotImplementedError

    def _log(self, event: str, code: int, reason: str, **where: str | None) -> None:
        self._listener.context.node.refusals.log(event, code, reason, **where, ip=self._peer)

    def _answer(self, response: Response, keep: bool, head: bool = False) -> None:
        listener = self._listener
        context = listener.context
        listener.requests[response.status] += 1
        keep = keep and not context.node.draining
        now = context.sweep.now
        if keep and response.status == 200 and not response.headers and not head:
            body = response.body
            self._answers.append(b"%b%d\r\n\r\n%b" % (ok(now, response.content_type, listener.kept), len(body), body))
            self._deadline = now + listener.keep_alive
            if self._deadline + 1 < self.due_at:
                context.sweep.watch(self, self._deadline)
            return
        self._answers.append(encoded(response, now, listener.kept if keep else CLOSE, head))
        if not keep:
            self._last = True
        self._expect(listener.keep_alive)

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

    def _discard(self, size: int) -> None:
        """Discards input that a client sends after the server has rejected a request."""
        self._linger -= size
        if self._linger <= 0:
            self._linger = 0
            self._transport.close()

    @property
    def _overfull(self) -> bool:
        """Whether further requests must wait, because the client does not read its answers, or because too many requests wait."""
        return not self._writing or len(self._waiting) >= MAX_WAITING

    def _update_reading(self) -> None:
        """Pauses reading from the socket while the client reads no answers, many requests wait, or some input is unprocessed."""
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

    def hold_reading(self, hold: bool) -> None:
        self._held_reading = hold
        self._update_reading()

    def pause_writing(self) -> None:
        self._writing = False
        self._update_reading()

    def resume_writing(self) -> None:
        self._writing = True
        self._update_reading()

    # Deadlines and the end

    def _expect(self, seconds: float) -> None:
        """Sets the deadline of the connection to `seconds` from now.

        A scheduled call of `due` stays unchanged, unless it comes more than one second after the new deadline.
        """
        sweep = self._listener.context.sweep
        self._deadline = deadline = sweep.now + seconds
        if deadline + 1 < self.due_at:
            sweep.watch(self, self._deadline)

    def due(self, now: float) -> float | None:
        if self._deadline == NEVER:
            return now + ANSWER_SECONDS
        if self._deadline > now:
            return self._deadline
        if self._rest is not None and not self._overfull:  # the server has input to process, so the client is not late
            return now + 1
        if self._transport.is_closing() or not self._writing:
            self.abort()
            return None
        if not self._linger and (self._decoder.stage != IDLE or not self._decoder.started):
            self._listener.context.node.metrics.cut_offs["slow-request"] += 1
            if self._decoder.stage != IDLE:  # browsers open spare connections, on which they send nothing
                self._log("request refused", 408, "the request took too long")
            self._answer(error(408, "the request took too long", self._listener.headers), False)
            self.flush()
        elif not self._last and has_unread(self._transport):
            return now + 1
        self._last = True
        self._transport.close()
        self._deadline = now + ANSWER_SECONDS
        return self._deadline

    @property
    def unsent(self) -> int:
        """See `context.Open`."""
        return self._transport.get_write_buffer_size()

    def leave(self, code: int, reason: str) -> None:
        """Closes the connection, unless a request is in progress or some input is not processed."""
        if not self._busy and self._rest is None and self._decoder.stage == IDLE and not has_unread(self._transport):
            self._last = True
            self._transport.close()

    def abort(self) -> None:
        self._drop_input()
        self._busy = False
        self._transport.abort()
        self._check_end()

    def _drop_input(self) -> None:
        self._last = True
        self._rest = None
        self._waiting.clear()

    def _check_end(self) -> None:
        """Ends the connection if the client's input has ended and all requests are answered."""
        if not self._eof or self._gone or self._busy or self._waiting or (self._rest is not None and not self._last):
            return
        self._last = True
        if self._transport is LOST:
            self._answers.clear()
            self._listener.context.addresses.leave(self._address)
            self._release()
        else:
            self.flush()
            self._transport.close()

    def _release(self) -> None:
        """Removes the connection from the worker's tables after its end, or after another protocol has taken over the socket."""
        context = self._listener.context
        context.open.discard(self)
        context.sweep.forget(self)
        self._gone = True
        self._decoder.close()
