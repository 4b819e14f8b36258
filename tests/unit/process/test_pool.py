"""Slots and their workers. The workers are tasks of the test, at the other end of their control connections."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import msgspec
import pytest

from push1st.config.addresses import Listen
from push1st.config.model import Config, LogConfig, demo
from push1st.errors import ConfigError
from push1st.exposition import Lines
from push1st.metrics import SUPERVISOR
from push1st.process import pool as module
from push1st.process.children import Processes
from push1st.process.control import (
    Alive,
    ApplyChange,
    ChangeReply,
    ControlConnection,
    ControlMessage,
    ControlReply,
    ControlRequest,
    Failed,
    PrepareChange,
    Ready,
    Retire,
    StartWorker,
    unpack,
)
from push1st.process.pool import Pool, Slot, Tasks
from push1st.process.sockets import BALANCED, SocketTable


def config() -> Config:
    """The demo on free ports, with a broker, so that no engine is needed."""
    base = demo()
    return msgspec.structs.replace(
        base,
        broker="redis://127.0.0.1",
        server=msgspec.structs.replace(base.server, listen=(Listen("tcp", "127.0.0.1", 0),), drain=0),
        api=msgspec.structs.replace(base.api, listen=()),
    )


class FakeProcess:
    """A worker process that replies as `role` decides, and ends when a signal or `Retire` arrives."""

    def __init__(self, pid: int, end: socket.socket, role: Callable[["FakeProcess", ControlMessage], None]) -> None:
        self.pid = pid
        self.started = asyncio.get_running_loop().time()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.received: list[ControlMessage] = []
        self.role = role
        self.task = asyncio.ensure_future(self._run(end))

    async def _run(self, end: socket.socket) -> None:
        self.control = await ControlConnection.on(end)
        while (message := await self.control.receive()) is not None:
            self.received.append(message)
            self.role(self, message)
            if isinstance(message, Retire):
                self.end(0)

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)
            self.control._writer.close()

    def send(self, number: signal.Signals) -> None:
        self.end(-number)

    async def end_within(self, seconds: float) -> bool:
        await asyncio.wait((self.ended,), timeout=seconds)
        by_itself = self.ended.done()
        self.send(signal.SIGKILL)
        return by_itself

    @property
    def how(self) -> str:
        return str(self.ended.result())


class FakeProcesses:
    def __init__(self) -> None:
        self.all: list[FakeProcess] = []
        self.role = serve

    def start(self, command: Sequence[str], inherited: Sequence[int]) -> FakeProcess:
        assert str(inherited[0]) == command[-1]
        self.all.append(FakeProcess(len(self.all), socket.socket(fileno=os.dup(inherited[0])), self.role))
        return self.all[-1]


def serve(process: FakeProcess, message: ControlMessage) -> None:
    """A worker that listens, and replies to probes and requests."""
    match message:
        case StartWorker(number):
            process.control.send(Ready(100 + number, f"node {number}"))
        case Alive():
            process.control.send(message)
        case ControlRequest(id):
            process.control.send(ControlReply(id, [(process.pid, b"counters")]))


def fail(process: FakeProcess, message: ControlMessage) -> None:
    """A worker that cannot start."""
    if isinstance(message, StartWorker):
        process.control.send(Failed("the address is in use"))
        process.end(1)


def hang(process: FakeProcess, message: ControlMessage) -> None:
    """A worker that listens, and replies to nothing."""
    if isinstance(message, StartWorker):
        serve(process, message)


class Machine:
    def __init__(self, folder: Path, **more: float) -> None:
        self.processes = FakeProcesses()
        self.sockets = SocketTable()
        self.config = config()
        self.sockets.bind_missing(self.config)
        self.pool = Pool(cast(Processes, self.processes), self.sockets, Tasks(), folder, **more)


@asynccontextmanager
async def machine(folder: Path, **more: float) -> AsyncIterator[Machine]:
    made = Machine(folder, **more)
    try:
        yield made
    finally:
        made.pool.terminate()
        await made.pool.kill(0)
        made.pool.close_sockets()
        made.sockets.close()
        await asyncio.gather(*(one.task for one in made.processes.all))
        await asyncio.gather(*made.pool._tasks._tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop go round until a condition holds; the sockets between the tasks need no time."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition did not become true")


def numbers(slot: Slot) -> list[int]:
    return [one.socket.fileno() for those in slot.sockets.values() for one in those]


async def test_a_slot_gets_a_worker_and_keeps_its_sockets_when_the_worker_is_replaced(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        slot = Slot()
        assert await made.pool.open(slot, made.config)
        assert slot.worker is not None
        assert (slot.worker.ready.result(), slot.worker.node) == (100, "node 0")
        before, old = numbers(slot), made.processes.all[0]
        listening: list[bool] = []
        assert await made.pool.fill(slot, made.config, ready=lambda: listening.append(old.ended.done()))
        assert listening == [False], "the new worker listens before the old one retires"
        assert old.ended.result() == 0
        assert any(isinstance(one, Retire) for one in old.received)
        assert numbers(slot) == before


async def test_worker_that_replaces_an_ended_one_gets_its_number(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        first, second = Slot(), Slot()
        for slot in (first, second):
            assert await made.pool.open(slot, made.config)
        assert await made.pool.fill(second, made.config)
        assert second.worker is not None
        assert second.worker.number == 2, "after a reload, number 1 is free"
        made.processes.all[-1].end(-signal.SIGKILL)
        await until(lambda: len(made.processes.all) == 4 and bool(made.processes.all[-1].received))
        starts = [one.received[0] for one in made.processes.all]
        assert [start.number for start in starts if isinstance(start, StartWorker)] == [0, 1, 2, 2]
        assert len({start.server for start in starts if isinstance(start, StartWorker)} - {""}) == 1


async def test_a_worker_that_does_not_start_leaves_the_reason_and_the_old_worker(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        slot = Slot()
        assert await made.pool.open(slot, made.config)
        working = slot.worker
        made.processes.role = fail
        assert not await made.pool.fill(slot, made.config)
        assert slot.problem == "the address is in use"
        assert slot.worker is working
        assert not made.processes.all[0].ended.done()


async def test_a_worker_that_ends_is_replaced_at_once(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        slot = Slot()
        await made.pool.open(slot, made.config)
        first = slot.worker
        made.processes.all[0].end(1)
        await until(lambda: slot.worker is not first)
        assert len(made.processes.all) == 2


async def test_a_worker_that_leaves_its_probes_without_reply_is_killed(tmp_path: Path) -> None:
    async with machine(tmp_path, probe_seconds=0.001) as made:
        made.processes.role = hang
        made.pool.stopping = True  # so that no other worker replaces this one
        await made.pool.open(Slot(), made.config)
        async with asyncio.timeout(5):
            assert await made.processes.all[0].ended == -signal.SIGKILL
        assert sum(isinstance(one, Alive) for one in made.processes.all[0].received) >= module.MAX_PROBES


async def test_a_request_of_a_worker_is_replied_with_the_counters_of_the_others_and_of_the_pool(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        for _ in range(3):
            await made.pool.open(Slot(), made.config)
        requester = made.processes.all[0]
        requester.control.send(ControlRequest(7))
        await until(lambda: isinstance(requester.received[-1], ControlReply))
        reply = requester.received[-1]
        assert isinstance(reply, ControlReply)
        assert reply.id == 7
        *others, (number, packed) = reply.packed
        assert sorted(others) == [(1, b"counters"), (2, b"counters")]
        assert number == SUPERVISOR
        families = {one.name: one.lines for one in msgspec.msgpack.decode(packed, type=list[Lines])}
        assert families["push1st_workers"] == "push1st_workers 3.0\n"
        assert families["process_open_fds"].startswith('process_open_fds{process="supervisor"} ')


async def test_the_second_interruption_sends_another_signal(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        await made.pool.open(Slot(), made.config)
        made.pool.interrupt()
        assert not made.processes.all[0].ended.done(), "a worker that is ready is stopped by `terminate`"
        made.pool.interrupt()
        assert made.processes.all[0].ended.result() == -signal.SIGINT


async def test_a_removed_slot_closes_its_sockets_when_its_worker_has_retired(tmp_path: Path) -> None:
    async with machine(tmp_path) as made:
        slot = Slot()
        await made.pool.open(slot, made.config)
        own = [one.socket for those in slot.sockets.values() for one in those]
        await made.pool.remove(slot)
        assert made.pool.slots == []
        assert made.processes.all[0].ended.result() == 0
        assert all(one.fileno() == -1 for one in own) == BALANCED


# Changes of the configuration


def changing(process: FakeProcess, message: ControlMessage) -> None:
    """A worker that applies changed configurations."""
    if isinstance(message, PrepareChange | ApplyChange):
        process.control.send(ChangeReply(message.id, (type(message).__name__,)))
    else:
        serve(process, message)


def refusing(process: FakeProcess, message: ControlMessage) -> None:
    """A worker that cannot use a changed configuration."""
    if isinstance(message, PrepareChange):
        process.control.send(ChangeReply(message.id, problem="no file"))
    else:
        changing(process, message)


def received(process: FakeProcess) -> list[str]:
    return [type(one).__name__ for one in process.received if isinstance(one, PrepareChange | ApplyChange)]


def with_level(config: Config) -> Config:
    return msgspec.structs.replace(config, log=LogConfig(level="debug"))


@asynccontextmanager
async def two_workers(folder: Path, *roles: Callable[[FakeProcess, ControlMessage], None]) -> AsyncIterator[Machine]:
    async with machine(folder, change_seconds=0.05) as made:
        for role in roles:
            made.processes.role = role  # type: ignore[assignment]  # mypy takes the type of the first function
            assert await made.pool.open(Slot(), made.config)
        yield made


async def test_all_workers_check_a_change_before_one_applies_it(tmp_path: Path) -> None:
    async with two_workers(tmp_path, changing, changing) as made:
        new = with_level(made.config)
        assert made.pool.restart_keys(new) == []
        assert await made.pool.change(new) == (["ApplyChange"], [])
        assert [received(one) for one in made.processes.all] == [["PrepareChange", "ApplyChange"]] * 2
        sent = [one for one in made.processes.all[0].received if isinstance(one, PrepareChange)]
        assert unpack(sent[0].config).log.level == "debug"
        assert unpack(sent[0].config).server.listen[0].port, "the real port"


@pytest.mark.parametrize(("role", "problem"), [(refusing, "worker 1: no file"), (serve, "worker 1 did not answer within 0.05 s")])
async def test_a_worker_that_cannot_check_a_change_stops_it_for_all(
    tmp_path: Path, role: Callable[[FakeProcess, ControlMessage], None], problem: str
) -> None:
    async with two_workers(tmp_path, changing, role) as made:
        with pytest.raises(ConfigError, match=problem):
            await made.pool.change(with_level(made.config))
        assert [received(one) for one in made.processes.all] == [["PrepareChange"]] * 2
        assert [slot.config.log.level for slot in made.pool.slots] == ["info", "info"]


async def test_reason_of_all_workers_is_given_once(tmp_path: Path) -> None:
    async with two_workers(tmp_path, refusing, refusing) as made:
        with pytest.raises(ConfigError, match=r"^no file$"):
            await made.pool.change(with_level(made.config))


async def test_a_worker_that_does_not_apply_a_change_is_named(tmp_path: Path) -> None:
    def half(process: FakeProcess, message: ControlMessage) -> None:
        if not isinstance(message, ApplyChange):
            changing(process, message)

    async with two_workers(tmp_path, changing, half) as made:
        lines, problems = await made.pool.change(with_level(made.config))
        assert (lines, problems) == (["ApplyChange"], ["worker 1 did not answer within 0.05 s"])
        assert [slot.config.log.level for slot in made.pool.slots] == ["debug", "debug"], "a worker that is killed gets it later"


async def test_a_worker_that_ends_during_a_change_returns_with_the_new_configuration(tmp_path: Path) -> None:
    def dying(process: FakeProcess, message: ControlMessage) -> None:
        if isinstance(message, PrepareChange):
            process.end(1)
        else:
            changing(process, message)

    async with two_workers(tmp_path, changing, dying) as made:
        made.processes.role = changing
        assert await made.pool.change(with_level(made.config)) == (["ApplyChange"], [])
        await until(lambda: len(made.processes.all) == 3 and bool(made.processes.all[2].received))
        start = made.processes.all[2].received[0]
        assert isinstance(start, StartWorker)
        assert unpack(start.config).log.level == "debug"


async def test_a_worker_with_an_older_configuration_needs_to_be_replaced(tmp_path: Path) -> None:
    """A worker that was not replaced at the last reload still has the former value."""
    async with two_workers(tmp_path, changing, changing) as made:
        new = msgspec.structs.replace(made.config, server=msgspec.structs.replace(made.config.server, drain=7))
        assert await made.pool.fill(made.pool.slots[0], new)
        made.pool.slots[1].config = new
        assert made.pool.restart_keys(new) == ["server.drain"]
