"""Runs `push1st serve` in this process: the command in the main thread, its clients and backends in another thread.

So a debugger and `make coverage` see the whole server. tests/clients runs the same server in a process of its own.
"""

import contextlib
import gc
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from push1st.cli import main
from tests.support.process import DEADLINE, ServerProcess


class Output(io.StringIO):
    """A stream; a thread may wait until a text is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            size = super().write(text)
            self._changed.notify_all()
        return size

    def wait_for(self, text: str, times: int = 1) -> str:
        """Waits until the text has been written this number of times; returns all output."""
        with self._changed:
            found = self._changed.wait_for(lambda: self.getvalue().count(text) >= times, DEADLINE)
            assert found, f"{text!r} was not written {times} times:\n{self.getvalue()}"
            return self.getvalue()


class Inside(ServerProcess):
    """A server whose command runs in the main thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        super().__init__(**more)
        self._monkeypatch = monkeypatch
        self.log = Output()
        self.may_trace = False
        """whether the log may contain the trace of an exception"""

    @property
    def config(self) -> str:
        return str(self.folder / "server.yml")

    @property
    def output(self) -> str:
        return self.log.getvalue()

    def serve(self, visit: Callable[[], None], *options: str) -> int:
        """Runs the command; calls `visit` in another thread when the server is ready, then stops it. Returns its exit code."""
        failures: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            try:
                self.log.wait_for("connections_possible=")
                visit()
            except BaseException as exc:
                failures.append(exc)
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=run)
        with plain_process():
            self._monkeypatch.setattr(sys, "stderr", self.log)
            # The supervisor starts workers with the interpreter options of its own process.
            self._monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "push1st"])
            thread.start()
            try:
                code = main(["serve", "-c", self.config, *options])
            finally:
                ended.set()
                thread.join()
                self._monkeypatch.undo()
        if failures:
            raise failures[0]
        assert self.may_trace or re.search(r"Traceback|internal error", self.output) is None, self.output
        return code


@contextlib.contextmanager
def plain_process() -> Iterator[None]:
    """Restores the signal handlers, logging and garbage collection that a server changes for its whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    threshold, roots, level = gc.get_threshold(), logging.root.handlers[:], logging.root.level
    signal.signal(signal.SIGTERM, lambda *_: None)  # a signal that arrives when the server has just ended
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()
        gc.set_threshold(*threshold)
        logging.captureWarnings(False)
        logging.root.handlers[:] = roots
        logging.root.setLevel(level)
        structlog.reset_defaults()
