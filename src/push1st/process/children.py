"""Child processes of an event loop, which die with their parent."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from push1st.errors import ConfigError

STEADY_SECONDS = 60
"""after which one that ends is started again at once, whatever was before"""
LEAST_WAIT = 0.5
MAX_WAIT = 30
"""seconds between two starts of one that ends again and again: doubled each time"""
PR_SET_PDEATHSIG = 1  # prctl(2)


class Process:
    """A child. born: monotonic seconds. ended: its exit code, once it has one; below zero, the signal that ended it."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.popen = popen
        self.pid = popen.pid
        self.born = time.monotonic()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, number: signal.Signals) -> None:
        if not self.ended.done():
            self.popen.send_signal(number)

    async def end_within(self, seconds: float) -> bool:
        """Waits for its end, then kills it. Returns whether it ended by itself."""
        await asyncio.wait((self.ended,), timeout=seconds)
        by_itself = self.ended.done()
        self.send(signal.SIGKILL)
        await asyncio.wait((self.ended,))
        return by_itself

    @property
    def how(self) -> str:
        """How it ended."""
        code = self.ended.result()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


class Processes:
    """All children. There is one of this in a process, since it takes SIGCHLD for itself."""

    def __init__(self) -> None:
        self._there: set[Process] = set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, command: Sequence[str], inherited: Sequence[int] = (), output: int | None = None) -> Process:
        """Starts a program. inherited: descriptors it gets. output: one for both its outputs. Raises ConfigError."""
        try:
            popen = subprocess.Popen(  # noqa: S603 - our own programs
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which tells the others
                preexec_fn=partial(_die_with_parent, os.getpid()) if _prctl is not None else None,
            )
        except OSError as exc:
            raise ConfigError(f"cannot run {command[0]}: {exc.strerror or exc}") from exc
        process = Process(popen)
        self._there.add(process)
        return process

    def _reap(self) -> None:
        for process in list(self._there):
            code = process.popen.poll()
            if code is not None:
                self._there.discard(process)
                process.ended.set_result(code)


class Backoff:
    """How long to wait before something is started again: not at all, unless it ended soon, twice."""

    def __init__(self) -> None:
        self._failures = 0

    def after(self, lived: float) -> float:
        """lived: seconds between its start and its end."""
        self._failures = 0 if lived >= STEADY_SECONDS else self._failures + 1
        return 0 if self._failures < 2 else min(MAX_WAIT, LEAST_WAIT * 2 ** min(self._failures - 2, 16))


def interpreter_options() -> list[str]:
    """What stands between the interpreter and the program on our own command line, such as `-W error`."""
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    return options[:-1] if options[-1:] == ["-m"] else options


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with_parent(parent: int) -> None:
    """In the child, before it becomes another program: the kernel kills it when its parent ends, which may have happened."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
