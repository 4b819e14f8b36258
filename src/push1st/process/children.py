"""Starts child processes, and detects their end. On Linux, child processes end when their parent process ends."""

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
"""A child process that has run for at least this time before it ends is started again without a wait."""
MIN_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30
"""The minimum and maximum wait before a restart. If a process runs for less than `STEADY_SECONDS`, the next wait doubles."""
PR_SET_PDEATHSIG = 1  # prctl(2)


class Process:
    """A child process.

    started: the time of the process's start, in seconds of the monotonic clock.
    ended: a future with the exit code of the process; a negative exit code -N means that signal N ended the process.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.popen = popen
        self.pid = popen.pid
        self.started = time.monotonic()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if not self.ended.done():
            self.popen.send_signal(number)

    async def end_within(self, seconds: float) -> bool:
        """Waits until the process ends, and kills it after `seconds`. Returns False if the process was killed."""
        await asyncio.wait((self.ended,), timeout=seconds)
        by_itself = self.ended.done()
        self.send(signal.SIGKILL)
        await asyncio.wait((self.ended,))
        return by_itself

    @property
    def how(self) -> str:
        """The exit code of the process, or the name of the signal that ended the process, for the log."""
        code = self.ended.result()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


class Processes:
    """Starts child processes and detects their end. A program must create only one instance, which handles SIGCHLD."""

    def __init__(self) -> None:
        self._running: set[Process] = set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, command: Sequence[str], inherited: Sequence[int] = (), output: int | None = None) -> Process:
        """Starts a program.

        inherited: the file descriptors that the child process inherits.
        output: the file descriptor for the child's standard output and error; None: the child inherits both from its parent.
        Raises ConfigError if the program cannot be started.
        """
        try:
            popen = subprocess.Popen(  # noqa: S603 - our own programs
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C in a terminal signals only this process, which then stops its children
                preexec_fn=partial(_die_with_parent, os.getpid()) if _prctl is not None else None,
            )
        except OSError as exc:
            raise ConfigError(f"cannot run {command[0]}: {exc.strerror or exc}") from exc
        process = Process(popen)
        self._running.add(process)
        return process

    def _reap(self) -> None:
        for process in list(self._running):
            code = process.popen.poll()
            if code is not None:
                self._running.discard(process)
                process.ended.set_result(code)


class Backoff:
    """Computes the wait before a child process starts again: 0, unless the process ended early at least twice in a row."""

    def __init__(self) -> None:
        self._failures = 0

    def after(self, lived: float) -> float:
        """Returns the seconds to wait before a restart, if the child process ended `lived` seconds after its start."""
        self._failures = 0 if lived >= STEADY_SECONDS else self._failures + 1
        return 0 if self._failures < 2 else min(MAX_WAIT_SECONDS, MIN_WAIT_SECONDS * 2 ** min(self._failures - 2, 16))


def interpreter_options() -> list[str]:
    """Returns the options of the Python interpreter on this process's command line, such as `-W error`."""
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    return options[:-1] if options[-1:] == ["-m"] else options


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with_parent(parent: int) -> None:
    """Makes the kernel kill the child when its parent ends. The child calls this function before it executes its program."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # the parent ended before the call of `prctl`
        os._exit(1)
