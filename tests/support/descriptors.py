"""Opens more connections than the server has file descriptors for."""

import contextlib
from collections import Counter

from tests.support.process import ServerProcess
from tests.support.wire import CLOSE, HANDSHAKE, Gone, Wire

LOGGED = "no file descriptors for more clients"


def crowd(server: ServerProcess, count: int, stack: contextlib.ExitStack, address: str = "") -> Counter[int]:
    """Connects clients that stay; returns how many got each close code, 0 for an established connection.

    address: the client address that a proxy forwards.
    """
    forwarded = f"X-Forwarded-For: {address}\r\n" if address else ""
    told: Counter[int] = Counter()
    for _ in range(count):
        with contextlib.ExitStack() as attempt:
            try:
                wire = attempt.enter_context(Wire(server.ws_port))
                wire.send(b"GET /app/app-key?protocol=7 HTTP/1.1\r\n" + HANDSHAKE + forwarded.encode() + b"\r\n")
                assert wire.response()[0] == 101
                opcode, payload = wire.receive()
                while b"pusher:error" in payload:
                    opcode, payload = wire.receive()
            except Gone:
                told[1006] += 1
                continue
            code = int.from_bytes(payload[:2], "big") if opcode == CLOSE else 0
            told[code] += 1
            if not code:
                stack.push(attempt.pop_all())
    return told
