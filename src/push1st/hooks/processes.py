"""Child processes for code that is not ours: it may crash, or never return, and takes nothing from the server's loop.

A child does one call at a time. One that does not answer in time is killed, and so is one whose call was broken off: what
it was doing is unknown. The next call starts another. Children end by themselves when the server is gone (`child.py`).
"""

import asyncio
import subprocess
import sys
from collections import deque
from contextlib import suppress

from push1st import logs
from push1st.hooks import TRANSPORTS, NotDelivered, Target, shown
from push1st.hooks.child import ASK, FAILED, LENGTH, READY, TELL

START_SECONDS = 30.0
"""for a child to load what it will call"""
MAX_ANSWER = 1 << 20

log = logs.get("push1st.hooks")


class Processes:
    """module: what a child runs, with the target's place as its argument. At most `target.processes` children."""

    def __init__(self, module: str, target: Target) -> None:
        self._module = module
        self._target = target
        self._name = shown(target.url)
        self._children: set[asyncio.subprocess.Process] = set()
        self._idle: list[asyncio.subprocess.Process] = []
        self._waiting: deque[asyncio.Future[asyncio.subprocess.Process]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def tell(self, id: str, body: bytes) -> None:
        await self._call(TELL, body)

    async def ask(self, body: bytes) -> bytes:
        return await self._call(ASK, body)

    async def _call(self, kind: bytes, body: bytes) -> bytes:
        child = await self._take()
        try:
            async with asyncio.timeout(self._target.timeout):
                _send(child, kind, body)
                kind, answer = await _receive(child)
        except TimeoutError:
            log.error("hook is ended: it did not return in time", endpoint=self._name, seconds=self._target.timeout)
            await self._end(child)
            raise NotDelivered("timed-out", f"did not return within {self._target.timeout:g} s") from None
        except (EOFError, OSError):
            await self._end(child)
            log.error("hook has crashed", endpoint=self._name, exit_code=child.returncode)
            raise NotDelivered("crashed", f"the process ended with {child.returncode}") from None
        except BaseException:
            await self._end(child)
            raise
        self._give(child)
        if kind == FAILED:
            said, _, trace = answer.decode("utf-8", "replace").partition("\n")
            log.error("hook has failed", endpoint=self._name, exception=trace)
            raise NotDelivered("raised", said[:200])
        return answer

    async def _take(self) -> asyncio.subprocess.Process:
        """A child that is ready, and this caller's until it is given back."""
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
            self._children.discard(child)
        waits: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        self._start_more()
        try:
            return await waits
        except asyncio.CancelledError:
            if waits.done() and not waits.cancelled() and waits.exception() is None:
                self._give(waits.result())
            raise

    def _give(self, child: asyncio.subprocess.Process) -> None:
        while self._waiting:
            waits = self._waiting.popleft()
            if not waits.done():
                waits.set_result(child)
                return
        self._idle.append(child)

    def _start_more(self) -> None:
        """Starts a child if somebody waits for one and there may be more."""
        if self._waiting and not self._closed and len(self._children) + len(self._starting) < self._target.processes:
            task = asyncio.get_running_loop().create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            while self._waiting:
                waits = self._waiting.popleft()
                if not waits.done():
                    waits.set_exception(failure)

    async def _start(self) -> None:
        target = self._target
        place = target.url.partition("://")[2]
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module, target.app, place, str(target.timeout), target.folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the server, which ends its children
            )
        except OSError as exc:  # for example, no file descriptor is free
            log.error("hook cannot be started", endpoint=self._name, reason=exc.strerror)
            raise NotDelivered("crashed", f"cannot be started: {exc.strerror}") from None
        self._children.add(child)
        try:
            async with asyncio.timeout(START_SECONDS):
                kind, text = await _receive(child)
        except (TimeoutError, EOFError, OSError):
            await self._end(child)
            log.error("hook cannot be started", endpoint=self._name, exit_code=child.returncode)
            raise NotDelivered("crashed", f"cannot be started: the process ended with {child.returncode}") from None
        except BaseException:
            await self._end(child)
            raise
        if kind != READY:
            await self._end(child)
            said, _, trace = text.decode("utf-8", "replace").partition("\n")
            log.error("hook cannot be started", endpoint=self._name, exception=trace)
            raise NotDelivered("crashed", f"cannot be started: {said[:200]}")
        self._give(child)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        self._children.discard(child)
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        self._start_more()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._starting):
            task.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        for child in list(self._children):
            await self._end(child)


def problem(url: str, folder: str) -> str:
    """Why what an endpoint names cannot be called, or "": a child loads it, and ends. Waits."""
    scheme, _, place = url.partition("://")
    command = [sys.executable, "-m", TRANSPORTS[scheme].partition(":")[0], "", place, "1", folder]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)  # noqa: S603 - what serving would run
    kind, body = child.stdout[LENGTH.size : LENGTH.size + 1], child.stdout[LENGTH.size + 1 :]
    return "" if kind == READY else body.partition(b"\n")[0].decode() or "the process that loads it ends at once"


def _send(child: asyncio.subprocess.Process, kind: bytes, body: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(LENGTH.pack(len(body)) + kind + body)


async def _receive(child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Raises EOFError when the child ends."""
    assert child.stdout is not None
    head = await child.stdout.readexactly(LENGTH.size + 1)
    (length,) = LENGTH.unpack(head[:-1])
    if length > MAX_ANSWER:
        raise EOFError
    return head[-1:], await child.stdout.readexactly(length)
