"""WebSockets on a fake socket: paths of both protocols, and what a client sends and reads."""

from websockets.frames import Opcode

from tests.support.frames import texts
from tests.support.loop import turns
from tests.support.node import KEY
from tests.support.transport import Site, Transport

PUSHER = f"/app/{KEY}?protocol=7&client=js&version=8.6.0&flash=false"
RAW = f"/ws/app/{KEY}/c"
TIMEOUT = 120
PING = (Opcode.PING, b"")


def body(transport: Transport) -> bytes:
    """Returns the bytes after the answer to the handshake."""
    head, separator, rest = transport.data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert separator
    return rest


async def opened(site: Site, path: str = PUSHER, *headers: str) -> Transport:
    """Opens a connection and reads its first frames."""
    transport = await site.websocket(path, *headers)
    transport.take()
    return transport


async def send(transport: Transport, *data: bytes) -> None:
    for one in data:
        transport.protocol.data_received(one)
    await turns()


def said(transport: Transport) -> list:
    """Returns the text messages since the last call."""
    return texts(transport.take())
