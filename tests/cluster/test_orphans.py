"""Children whose parent was killed end by themselves, where the kernel does not kill them (Linux does).

The parent is the test, which makes no such request to the kernel.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from push1st.config.model import ApiConfig, ServerConfig, demo
from push1st.process.control import ControlConnection, Ready, StartWorker, pack
from push1st.process.engine import command, program, replies
from tests.support.process import DEADLINE, wait_until


def run_engine(path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command(program("memory"), path), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def run_worker(end: socket.socket) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "push1st.process.worker", str(end.fileno())],
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


async def until_ready(line: ControlConnection, path: Path) -> None:
    async with asyncio.timeout(20):
        nowhere = msgspec.structs.replace(
            demo(), server=ServerConfig(listen=()), api=ApiConfig(listen=()), broker=f"unix://{path}"
        )
        line.send(StartWorker(3, pack(nowhere), [], str(path), []))
        assert isinstance(await line.receive(), Ready)


def test_worker_without_its_supervisor_ends_with_the_engine() -> None:
    with tempfile.TemporaryDirectory(prefix="p1-") as folder:
        path = Path(folder) / "engine.sock"
        engine = run_engine(path)
        wait_until(lambda: asyncio.run(replies(path)), "the engine works")
        ours, theirs = socket.socketpair()
        with theirs:
            worker = run_worker(theirs)

        async def supervise() -> None:
            line = await ControlConnection.on(ours)
            await until_ready(line, path)
            await line.close()

        try:
            asyncio.run(supervise())
            assert worker.wait(DEADLINE) == 1
            assert engine.wait(DEADLINE) == 0
            assert worker.stderr is not None
            assert "the supervisor is gone" in worker.stderr.read().decode()
        finally:
            for process in (worker, engine):
                process.kill()
                process.wait()
            if worker.stderr is not None:
                worker.stderr.close()
