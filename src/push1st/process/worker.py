"""One of several workers: `python -m push1st.process.worker FD`, started by `supervisor` and by nobody else.

What it is to be comes over the descriptor FD (`control`), and so does its end: when the other side is gone, so is it.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

import uvloop

from push1st import logs
from push1st.api.hooks import states
from push1st.api.server import snapshot
from push1st.config.model import Listen
from push1st.errors import ConfigError
from push1st.printable import printable_lines
from push1st.process.control import (
    Alive,
    Ask,
    ControlConnection,
    ControlReply,
    Failed,
    Ready,
    Retire,
    StartWorker,
    Workers,
    unpack,
)
from push1st.process.engine import shut_down
from push1st.process.server import Server, raise_file_limit
from push1st.process.sockets import BoundSocket

GATHER_SECONDS = 3
"""for the supervisor to say what the others have counted"""


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(socket.socket(fileno=int(sys.argv[1]))))


async def _work(end: socket.socket) -> int:
    line = await ControlConnection.on(end)
    order = await line.receive()
    if not isinstance(order, StartWorker):
        return 1
    config = unpack(order.config)
    logs.setup(config.log.format, config.log.level, sys.stderr, worker=order.number)
    raise_file_limit()
    siblings = Siblings(order.number, line)
    doors = [BoundSocket(role, Listen.parse(address), socket.socket(fileno=fd)) for role, address, fd in order.doors]
    server = Server(config, doors, siblings)
    if order.engine:
        server.workers(order.nodes)
    listening = asyncio.ensure_future(_listen(line, server, siblings))
    listening.add_done_callback(partial(_orphaned, order.engine))
    try:
        await server.start()
    except ConfigError as exc:
        print(printable_lines(str(exc)), file=sys.stderr, flush=True)
        line.send(Failed(str(exc)))
        os._exit(1)  # whatever is open is the kernel's to close
    line.send(Ready(server.context.descriptors.possible, server.name))
    await server.run()
    listening.cancel()
    await line.close()
    return 0


async def _listen(line: ControlConnection, server: Server, siblings: "Siblings") -> None:
    while (word := await line.receive()) is not None:
        match word:
            case Retire():
                server.retire()
            case Workers(nodes):
                server.workers(nodes)
            case Alive():
                line.send(word)
            case Ask(id, app):
                packed = snapshot(server.node) if app is None else states(server.node.hooks.status(app))
                line.send(ControlReply(id, [(siblings.number, packed)]))
            case ControlReply():
                siblings.told(word)


def _orphaned(engine: str, listening: asyncio.Future[None]) -> None:
    """Nobody watches this worker any more, or would start another in its place: it ends at once, as its supervisor did.

    Linux does it before (`supervisor.die_with_parent`); elsewhere this is how.
    """
    if not listening.cancelled():
        logs.get("push1st.worker").error("the supervisor is gone", exc_info=listening.exception())
        shut_down(engine)
        os._exit(1)


class Siblings:
    """The other workers, asked by way of the supervisor."""

    def __init__(self, number: int, line: ControlConnection) -> None:
        self.number = number
        self._line = line
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[ControlReply]] = {}

    async def metrics(self) -> Sequence[tuple[int, bytes]]:
        return await self._ask(None)

    async def hooks(self, app: str) -> Sequence[bytes]:
        return [packed for _, packed in await self._ask(app)]

    async def _ask(self, app: str | None) -> Sequence[tuple[int, bytes]]:
        id = next(self._ids)
        answer = self._asked[id] = asyncio.get_running_loop().create_future()
        self._line.send(Ask(id, app))
        try:
            done, _ = await asyncio.wait((answer,), timeout=GATHER_SECONDS)
            return answer.result().packed if done else ()
        finally:
            del self._asked[id]

    def told(self, word: ControlReply) -> None:
        answer = self._asked.get(word.id)
        if answer is not None and not answer.done():
            answer.set_result(word)


if __name__ == "__main__":
    sys.exit(main())
