"""Serves the requests of an HTTP connection one after another, and answers them in the same order (RFC 9112 §9.3.2).

While a request is in progress, later requests wait. Each request is served by the API, or by a handler (see `handlers`).
"""

from collections.abc import Coroutine

import msgspec

from push1st.eager import Suspended, run_eagerly, spawn
from push1st.errors import Refused
from push1st.messages import Request, Response
from push1st.transports.answers import error
from push1st.transports.handlers import Handler, HandlerRequest, Outcome, Pending, Takeover
from push1st.transports.http_output import HttpOutput
from push1st.transports.listener import Listener
from push1st.transports.sweep import NEVER

SAMPLED = 31 << 10
"""Bits of the time at which a request began, in nanoseconds: the duration of one in 32 requests to the API is measured. The bits
are random, because they change every microsecond. measured: a duration takes 5 % of the instructions of a publish."""


class Pipeline(HttpOutput):
    """Serves the requests of one HTTP connection."""

    __slots__ = ("_held", "_keep")

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._held: Pending | None = None
        """the `Pending` result that will finish the request in progress"""
        self._keep = False

    def _refuse(self, status: int, text: str, headers: bytes = b"") -> None:
        """Rejects a request, after which the connection decodes no other. The client gets only the first of several errors."""
        if self._refused is None:
            self._refused = error(status, text, headers + self._listener.headers)
            self._log("request refused", status, text)

    def _begin(self, request: Request | HandlerRequest, handler: Handler | None, keep: bool) -> None:
        if isinstance(request, Request):
            self._serve(request, keep)
        elif handler is not None:
            self._handle(request, handler, keep)

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
            if not request.started & SAMPLED:
                self._listener.answered(request)
            self._answer(response, keep, request.method == "HEAD")

    def _failure(self, exc: Exception, request: Request | HandlerRequest) -> Response:
        """Returns the answer to a failed request: the rejection in `Refused`, or status 500 for any other exception."""
        context = self._listener.context
        if isinstance(exc, Refused):
            context.node.metrics.refusals[str(exc.code)] += 1
            path = None
            if isinstance(request, Request):
                path = request.path
                self._listener.handlers.refused(path)
            self._log("request refused", exc.code, exc.text, method=request.method, path=path)
            return error(exc.code, exc.text)
        context.failed("request")
        return error(500, "internal error")

    async def _wait(self, rest: Suspended[Response], keep: bool, request: Request) -> None:
        """Answers a request when its response is ready, and then serves the waiting requests."""
        try:
            response = await rest
        except Exception as exc:
            response = self._failure(exc, request)
        if not request.started & SAMPLED:
            self._listener.answered(request)
        self._done(response, keep, request.method == "HEAD")

    def _done(self, response: Response, keep: bool, head: bool = False) -> None:
        self._busy = False
        if self._gone:
            return
        self._answer(response, keep, head)
        self._serve_waiting()
        if self._refused is not None and not self._busy and self._upgraded is None:
            self._answer(self._refused, False)
        self._update_reading()
        self.flush()
        if self._upgraded is not None:
            self._release()
        else:
            self._check_end()

    def _serve_waiting(self) -> None:
        while self._waiting and not self._busy:
            self._begin(*self._waiting.pop(0))

    # Requests of handlers

    def _handle(self, request: HandlerRequest, handler: Handler, keep: bool) -> None:
        """Lets a handler serve a request. The handler answers at once, answers later, or takes over the socket."""
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
        """Waits for the result of a handler. The handler may, for example, wait for a reply from another worker."""
        try:
            found = await rest
        except Exception as exc:
            found = msgspec.structs.replace(self._failure(exc, request), headers=handler.headers)
        if isinstance(found, Response):
            self._done(found, keep, request.method == "HEAD")
            return
        self._busy = False
        if self._gone:
            found.lost(self)
            return
        self._hand_over(found, keep)
        if self._upgraded is not None:
            self._release()
        elif self._eof:
            self._serve_waiting()
            self._check_end()

    def _hand_over(self, found: Takeover | Pending, keep: bool) -> None:
        if self._eof:
            found.lost(self)
        elif isinstance(found, Takeover) and not self._writing:
            # The client reads no answers, so reading is paused, and a `Takeover` would not notice the end of the input.
            found.lost(self)
            self.abort()
        elif isinstance(found, Takeover):
            before, self._answers = b"".join(self._answers), []
            self._waiting.clear()
            self._rest = None
            self._last = True
            self._update_reading()
            self._upgraded = found
            found.address = self._address
            found.start(self._transport, before)
        else:
            self._busy, self._deadline = True, NEVER
            self._held, self._keep = found, keep

    def finish(self, response: Response) -> None:
        """Answers the request whose response was pending."""
        self._held = None
        self._done(response, self._keep)

    def _stop_holding(self) -> None:
        """If a response is pending, notifies the `Pending` object that the client has closed the connection."""
        held, self._held = self._held, None
        if held is not None:
            self._busy = False
            held.lost(self)
