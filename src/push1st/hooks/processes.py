"""Runs users' functions and scripts in child processes: this code may crash or block, so the event loop must not run it.

A child process serves one call at a time. The server kills a child that does not reply in time, or whose call was
cancelled, because the child may still run the call. The next call starts another child. All children end when the server ends.
"""

import asyncio
import subprocess
import sys
from collections import deque
from contextlib import suppress

from push1st import logs
from push1st.eager import timeout
from push1st.hooks import TRANSPORTS, NotDelivered, Target, shown
from push1st.hooks.child import DELIVER, FAILED, LENGTH, READY, REQUEST

START_SECONDS = 30.0
"""the time limit for a child to load the user's code"""
MAX_REPLY_BYTES = 1 << 20

log = logs.get("push1st.hooks")


class HookProcesses:
    """The child processes of one endpoint, with `target.processes` as their maximum number.

    module: the module that the child process runs. Its first arguments are the app's id and the target's URL without the scheme.
    """

    def __init__(self, module: str, target: Target) -> None:
        self._module = module
        self._target = target
        self._name = shown(target.url)
        self._children: set[asyncio.subprocess.Process] = set()
        self._idle: list[asyncio.subprocess.Process] = []
        self._waiting: deque[asyncio.Future[asyncio.subprocess.Process]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def deliver(self, id: str, body: bytes) -> None:
        await self._call(DELIVER, body)

    async def request(self, body: bytes) -> bytes:
        return await self._call(REQUEST, body)

    async def _call(self, kind: bytes, body: bytes) -> bytes:
        child = await self._take()
        try:
            async with timeout(self._target.timeout):
                _send(child, kind, body)
                kind, answer = await _receive(child)
        except TimeoutError:
            log.error("hook killed, because it did not return in time", endpoint=self._name, seconds=self._target.timeout)
            await self._end(child)
            raise NotDelivered("timed-out", f"did not return within {self._target.timeout:g} s") from None
        except (EOFError, OSError):
            await self._end(child)
            log.error("hook crashed", endpoint=self._name, exit_code=child.returncode)
            raise NotDelivered("crashed", f"the process ended with {child.returncode}") from None
        except BaseException:
            await self._end(child)
            raise
        self._give(child)
        if kind == FAILED:
            text, _, trace = answer.decode("utf-8", "replace").partition("\n")
            log.error("hook failed", endpoint=self._name, exception=trace)
            raise NotDelivered("raised", text[:200])
        return answer

    async def _take(self) -> asyncio.subprocess.Process:
        """Returns a child that is ready. No other call uses this child until the caller passes it to `_give`."""
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
            self._children.discard(child)
        future: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._start_more()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give(future.result())
            raise

    def _give(self, child: asyncio.subprocess.Process) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(child)
                return
        self._idle.append(child)

    def _start_more(self) -> None:
        """Starts another child if a call waits for a child and the maximum number is not reached."""
        if self._waiting and not self._closed and len(self._children) + len(self._starting) < self._target.processes:
            task = asyncio.get_running_loop().create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(failure)

    async def _start(self) -> None:
        target = self._target
        place = target.url.partition("://")[2]
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module, target.app, place, str(target.timeout), target.folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal signals only the server, which then ends its children
            )
        except OSError as exc:  # the system may have no free file descriptor
            log.error("hook cannot be started", endpoint=self._name, reason=exc.strerror)
            raise NotDelivered("crashed", f"cannot be started: {exc.strerror}") from None
        self._children.add(child)
        try:
            async with timeout(START_SECONDS):
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
            line, _, trace = text.decode("utf-8", "replace").partition("\n")
            log.error("hook cannot be started", endpoint=self._name, exception=trace)
            raise NotDelivered("crashed", f"cannot be started: {line[:200]}")
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
    """Returns why an endpoint's function or script cannot be called, or "". To test it, a child loads the code and then ends."""
    scheme, _, place = url.partition("://")
    command = [sys.executable, "-m", TRANSPORTS[scheme].partition(":")[0], "", place, "1", folder]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)  # noqa: S603 - what serving would run
    kind, body = child.stdout[LENGTH.size : LENGTH.size + 1], child.stdout[LENGTH.size + 1 :]
    return "" if kind == READY else body.partition(b"\n")[0].decode() or "the process that loads it ends at once"


def _send(child: asyncio.subprocess.Process, kind: bytes, body: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(LENGTH.pack(len(body)) + kind + body)


async def _receive(child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Returns the kind and the body of the next frame from a child. Raises EOFError if the child ends."""
    assert child.stdout is not None
    head = await child.stdout.readexactly(LENGTH.size + 1)
    (length,) = LENGTH.unpack(head[:-1])
    if length > MAX_REPLY_BYTES:
        raise EOFError
    return head[-1:], await child.stdout.readexactly(length)
