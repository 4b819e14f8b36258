"""The other end of `processes.py`: a process that calls what is not ours, one call at a time.

Frames go over the pipes it is started with: length, kind, body. What the code prints goes where the server's log goes.
A call has an alarm that ends the process, whatever it is doing and whether or not the server is still there to kill it.
"""

import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable

LENGTH = struct.Struct(">I")
TELL, ASK = b"t", b"a"
READY, ANSWERED, FAILED = b"r", b"o", b"e"
"""a body behind FAILED: a line that says what failed, and the trace"""
MAX_TRACE = 10_000
LOAD_SECONDS = 30.0

Called = Callable[[bytes, bytes], bytes]
"""(TELL or ASK, body) → what is answered"""


def serve(load: Callable[[], Called], seconds: float) -> None:
    """Loads, then answers calls until the server closes the pipe. seconds: that a call may take, the server's own limit."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def answer(kind: bytes, body: bytes) -> None:
        sink.write(LENGTH.pack(len(body)) + kind + body)
        sink.flush()

    signal.setitimer(signal.ITIMER_REAL, LOAD_SECONDS)
    try:
        call = load()
    except BaseException:
        answer(FAILED, _trace())
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    answer(READY, b"")
    while len(head := source.read(LENGTH.size + 1)) == LENGTH.size + 1:
        body = source.read(LENGTH.unpack(head[:-1])[0])
        signal.setitimer(signal.ITIMER_REAL, seconds + 1)
        try:
            result = call(head[-1:], body)
        except Exception:
            signal.setitimer(signal.ITIMER_REAL, 0)
            answer(FAILED, _trace())
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            answer(ANSWERED, result)


def _trace() -> bytes:
    """A line that says what failed, and the trace."""
    failure = sys.exception()
    line = f"{type(failure).__name__}: {failure}".partition("\n")[0]
    return f"{line}\n{traceback.format_exc()[-MAX_TRACE:]}".encode("utf-8", "replace")
