"""The program of a worker process: `python -m push1st.process.worker FD`. The supervisor runs this program for each worker.

The file descriptor FD is the worker's end of the control connection. The worker receives its configuration over the control
connection. The worker ends when the control connection closes, which means that the supervisor has ended.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

import msgspec
import uvloop

from push1st import logs
from push1st.api.hooks import states
from push1st.api.metrics import snapshot
from push1st.eager import spawn
from push1st.errors import ConfigError
from push1st.printable import printable_lines
from push1st.process.control import (
    Alive,
    ApplyChange,
    ChangeReply,
    ControlConnection,
    ControlReply,
    ControlRequest,
    Failed,
    PrepareChange,
    Ready,
    Retire,
    StartWorker,
    Workers,
    unpack,
)
from push1st.process.engine import shut_down
from push1st.process.server import Server
from push1st.process.sockets import BoundSocket
from push1st.process.system import raise_file_limit

GATHER_SECONDS = 3
"""the time limit for the supervisor's reply with the counters or hook states of the other workers"""

log = logs.get("push1st.worker")


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(socket.socket(fileno=int(sys.argv[1]))))


async def _work(end: socket.socket) -> int:
    control = await ControlConnection.on(end)
    order = await control.receive()
    if not isinstance(order, StartWorker):
        return 1
    config = unpack(order.config)
    logs.setup(config.log.format, config.log.level, sys.stderr, worker=order.number)
    raise_file_limit()
    siblings = ControlSiblings(order.number, order.server, control)
    sockets = [BoundSocket(role, address, socket.socket(fileno=fd)) for role, address, fd in order.sockets]
    server = Server(config, sockets, siblings, is_reload=order.is_reload)
    if order.engine:
        server.workers(order.nodes)
    receiving = asyncio.ensure_future(_receive(control, server, siblings))
    receiving.add_done_callback(partial(_on_disconnect, order.engine))
    try:
        await server.start()
    except ConfigError as exc:
        print(printable_lines(str(exc)), file=sys.stderr, flush=True)
        control.send(Failed(str(exc)))
        os._exit(1)  # ends at once; the kernel closes all sockets and files
    control.send(Ready(server.context.descriptors.possible, server.name))
    server.node.status = siblings.status
    await server.run()
    receiving.cancel()
    await control.close()
    return 0


async def _receive(control: ControlConnection, server: Server, siblings: "ControlSiblings") -> None:
    """Handles the messages of the supervisor until the control connection closes."""
    while (message := await control.receive()) is not None:
        match message:
            case Retire():
                server.retire()
            case Workers(nodes):
                server.workers(nodes)
            case Alive():
                control.send(message)
            case ControlRequest(id, _, True):
                spawn(_report(control, server, id))
            case ControlRequest(id, app):
                spawn(_reply(control, server, siblings.number, id, app))
            case ControlReply():
                siblings.on_reply(message)
            case PrepareChange():
                spawn(_prepare(control, server, message))
            case ApplyChange(id):
                control.send(_apply(server, id))


async def _report(control: ControlConnection, server: Server, id: int) -> None:
    report = await server.report()
    control.send(ControlReply(id, [(report.figures.worker, msgspec.msgpack.encode(report))]))


async def _prepare(control: ControlConnection, server: Server, message: PrepareChange) -> None:
    problem = ""
    try:
        await server.live.prepare(unpack(message.config))
    except ConfigError as exc:
        problem = str(exc)
    except Exception as exc:  # the supervisor must get a reply
        log.exception("internal error", where="reload")
        problem = f"internal error: {type(exc).__name__}"
    control.send(ChangeReply(message.id, problem=problem))


def _apply(server: Server, id: int) -> ChangeReply:
    try:
        return ChangeReply(id, tuple(server.live.apply()))
    except Exception as exc:  # as above
        log.exception("internal error", where="reload")
        return ChangeReply(id, problem=f"internal error: {type(exc).__name__}")


async def _reply(control: ControlConnection, server: Server, number: int, id: int, app: str | None) -> None:
    """Sends the reply to a `ControlRequest`."""
    packed = await snapshot(server.node) if app is None else states(server.node.hooks.status(app))
    control.send(ControlReply(id, [(number, packed)]))


def _on_disconnect(engine: str, receiving: asyncio.Future[None]) -> None:
    """Ends the worker as soon as the supervisor has ended, because no process would watch or replace the worker.

    This function is for systems other than Linux: on Linux the kernel has already killed the worker (`children`).
    """
    if not receiving.cancelled():
        log.error("the supervisor is gone", exc_info=receiving.exception())
        shut_down(engine)
        os._exit(1)


class ControlSiblings:
    """The other workers. A worker requests counters of other workers through the supervisor (`core.siblings.Siblings`)."""

    def __init__(self, number: int, server: str, control: ControlConnection) -> None:
        self.number = number
        self.server = server
        self._control = control
        self._ids = itertools.count()
        self._requests: dict[int, asyncio.Future[ControlReply]] = {}

    async def metrics(self) -> Sequence[tuple[int, bytes]]:
        return await self._request(None)

    async def hooks(self, app: str) -> Sequence[bytes]:
        return [packed for _, packed in await self._request(app)]

    async def status(self) -> bytes:
        """Returns the state of the server as JSON; "" if the supervisor does not reply in time."""
        packed = await self._request(None, status=True)
        return packed[0][1] if packed else b""

    async def _request(self, app: str | None, *, status: bool = False) -> Sequence[tuple[int, bytes]]:
        id = next(self._ids)
        reply = self._requests[id] = asyncio.get_running_loop().create_future()
        self._control.send(ControlRequest(id, app, status))
        try:
            done, _ = await asyncio.wait((reply,), timeout=GATHER_SECONDS)
            return reply.result().packed if done else ()
        finally:
            del self._requests[id]

    def on_reply(self, reply: ControlReply) -> None:
        """Passes a reply to the coroutine that sent the request, if this coroutine still waits."""
        request = self._requests.get(reply.id)
        if request is not None and not request.done():
            request.set_result(reply)


if __name__ == "__main__":
    sys.exit(main())
