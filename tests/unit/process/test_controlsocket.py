"""The control socket: commands, their progress and their results."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from push1st.process import controlsocket
from push1st.process.controlsocket import MAX_COMMAND_BYTES, NAME, ControlSocket, Reload, Report, Result, read_status, send
from push1st.status import ServerStatus
from tests.support.server_status import status, worker


async def state() -> ServerStatus:
    return status(worker())


@asynccontextmanager
async def listening(answer: controlsocket.Answer) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="p1-") as folder:
        control = ControlSocket(Path(folder), answer, state)
        await control.open()
        try:
            yield Path(folder)
        finally:
            control.close()


async def ok(command: Reload, report: Report) -> Result:
    report(f"workers: {command.workers}")
    return Result(("done",))


async def test_a_command_gets_its_progress_and_its_result() -> None:
    lines: list[str] = []
    async with listening(ok) as folder:
        result = await asyncio.to_thread(send, folder, Reload(True), lines.append)
    assert (lines, result) == (["workers: True"], Result(("done",)))


async def test_a_request_for_the_state_gets_the_state() -> None:
    async with listening(ok) as folder:
        assert await asyncio.to_thread(read_status, folder) == status(worker())


async def test_a_server_that_does_not_listen_has_no_state(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None


async def test_a_server_that_does_not_listen_gives_no_result(tmp_path: Path) -> None:
    assert send(tmp_path, Reload(), print) is None


async def test_a_server_that_ends_during_a_command_gives_no_result() -> None:
    with tempfile.TemporaryDirectory(prefix="p1-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(folder) / NAME))
        listener.listen()
        asked = asyncio.ensure_future(asyncio.to_thread(send, Path(folder), Reload(), print))
        connection, _ = await asyncio.to_thread(listener.accept)
        connection.close()
        assert await asked is None


def _raw(folder: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / NAME))
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


async def test_an_unknown_command_is_answered_and_changes_nothing() -> None:
    async def never(_command: Reload, _report: Report) -> Result:
        raise AssertionError

    async with listening(never) as folder:
        for data in (b'{"type":"Explode"}\n', b"no json\n", b"x" * (MAX_COMMAND_BYTES + 1) + b"\n"):
            answer = await asyncio.to_thread(_raw, folder, data)
            assert b"does not know this command" in answer


async def test_the_number_of_commands_at_a_time_is_limited(monkeypatch) -> None:
    monkeypatch.setattr(controlsocket, "MAX_CONNECTIONS", 1)
    release = asyncio.Event()

    async def wait(_command: Reload, report: Report) -> Result:
        report("waits")
        await release.wait()
        return Result()

    async with listening(wait) as folder:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(_: str) -> None:
            loop.call_soon_threadsafe(begun.set)

        first = asyncio.ensure_future(asyncio.to_thread(send, folder, Reload(), note))
        await begun.wait()
        second = await asyncio.to_thread(send, folder, Reload(), print)
        assert second is not None
        assert second.problems == ("the server is busy with other commands",)
        release.set()
        assert await first == Result()
