"""The program of a child process (`processes.py`): it calls a user's function or script, one call at a time.

The server and the child exchange frames over pipes. A frame contains length, kind and body. The output of the user's code goes
to the server's standard error. SIGALRM ends the child a second after the time limit of a call, even if the server has ended.
"""

import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable

LENGTH = struct.Struct(">I")
DELIVER, REQUEST = b"t", b"a"
READY, ANSWERED, FAILED = b"r", b"o", b"e"
"""kinds of frames to the server; the body of FAILED is one line with the exception, and then the trace"""
MAX_TRACE = 10_000
LOAD_SECONDS = 30.0

Called = Callable[[bytes, bytes], bytes]
"""a function that takes the kind of a frame (DELIVER or REQUEST) and the frame's body, and returns the body of the reply"""


def serve(load: Callable[[], Called], seconds: float) -> None:
    """Loads the user's code, then serves calls until the server closes the pipe.

    load: a function that loads the code and returns the function to call.
    seconds: the time limit of a call in seconds. The server kills the child at this limit, before SIGALRM ends the child.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def reply(kind: bytes, body: bytes) -> None:
        sink.write(LENGTH.pack(len(body)) + kind + body)
        sink.flush()

    signal.setitimer(signal.ITIMER_REAL, LOAD_SECONDS)
    try:
        call = load()
    except BaseException:
        reply(FAILED, _trace())
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    reply(READY, b"")
    while len(head := source.read(LENGTH.size + 1)) == LENGTH.size + 1:
        body = source.read(LENGTH.unpack(head[:-1])[0])
        signal.setitimer(signal.ITIMER_REAL, seconds + 1)
        try:
            result = call(head[-1:], body)
        except Exception:
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(FAILED, _trace())
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(ANSWERED, result)


def _trace() -> bytes:
    """Returns a text for the current exception: one line that describes it, and then the trace."""
    exc = sys.exception()
    line = f"{type(exc).__name__}: {exc}".partition("\n")[0]
    return f"{line}\n{traceback.format_exc()[-MAX_TRACE:]}".encode("utf-8", "replace")
