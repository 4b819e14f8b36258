"""A client of the HTTP fallbacks on fake sockets: its requests, and the frames of their responses."""

import json

from tests.support.http import Answer, request
from tests.support.loop import turns
from tests.support.node import KEY
from tests.support.transport import Site, Transport

PATH = f"/pusher/app/{KEY}/7/session0"
STREAM = PATH + "/xhr_streaming?protocol=7"
POLL = PATH + "/xhr?protocol=7"
SEND = PATH + "/xhr_send"


def events(lines: bytes) -> list:
    """Returns frames as pusher-js reads them: single letters, the names of events, and the data of events named `e`."""
    found: list = []
    assert not lines or lines.endswith(b"\n")
    for line in lines.splitlines():
        match line[:1]:
            case b"a":
                for one in json.loads(line[1:]):
                    frame = json.loads(one)
                    found.append(frame["data"] if frame["event"] == "e" else frame["event"].rpartition(":")[2])
            case b"c":
                found.append(json.loads(line[1:])[0])
            case _:
                assert len(line) == 1
                found.append(line.decode())
    return found


WELCOME = ["o", "connection_established"]


async def ask(site: Site, path: str, body: bytes | str = b"", *headers: str) -> Transport:
    return await site.ask(request("POST", path, body, *headers))


async def stream(site: Site, *headers: str, path: str = STREAM) -> Transport:
    """Opens a stream; removes the head of its response."""
    transport = await ask(site, path, b"", *headers)
    head, separator, rest = transport.take().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert separator
    transport.writes.append(rest)
    return transport


def frames_of(transport: Transport) -> list:
    """Returns the frames of a stream since the last call."""
    return events(transport.take())


async def send(site: Site, *texts: object, path: str = SEND) -> int:
    body = json.dumps([one if isinstance(one, str) else json.dumps(one) for one in texts])
    return Answer((await ask(site, path, body)).data).status


async def subscribe(site: Site, channel: str = "c", auth: str = "") -> None:
    wanted = {"event": "pusher:subscribe", "data": {"channel": channel, "auth": auth}}
    assert await send(site, wanted) == 200


async def publish(site: Site, *data: str) -> None:
    for one in data:
        site.world.publish("c", json.dumps(one, ensure_ascii=False).encode())
    await turns()


async def subscribed(site: Site) -> Transport:
    """Opens a stream subscribed to the channel `c`, and reads its first frames."""
    transport = await stream(site)
    await subscribe(site)
    assert frames_of(transport) == [*WELCOME, "subscription_succeeded"]
    return transport


PROTOCOL_PING = {"event": "pusher:ping", "data": {}}


async def polled(site: Site) -> list:
    """Returns the frames of a poll that does not wait."""
    answer = Answer((await ask(site, POLL)).data)
    assert answer.status == 200
    return events(answer.body)


def session_of(site: Site):
    (session,) = site.world.app.tenant.sessions.values()
    return session
