"""Sessions of HTTP fallbacks whose requests come to other workers: how a request and its session find each other.

A session stays on the worker where it began, its owner. The owner listens on a topic of the session's; another worker to
which a request comes asks there, and nobody answers if the session is its own to begin. Sending is one question and its
answer. For a request that waits, or streams, the owner holds an `Away` where it would hold the request itself, and says
what to write on the topic of the asking worker; that one holds an `Afar` where it would hold the session. Each asks now and
then whether the other worker is still there and knows of the request (`xhr.Fallbacks`): one that was killed says no more
that it is gone, and what is said while the broker is away is not heard.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import msgspec

from push1st.messages import Response
from push1st.protocols.pusher_xhr import end_frames

if TYPE_CHECKING:
    from push1st.core.node import App
    from push1st.transports.xhr import Poll, Stream

TYPE = b"text/plain; charset=utf-8"
HEADERS = (
    b"Access-Control-Allow-Origin: *\r\n"  # the wire has no cookies; origins are checked where the session begins
    b"Cache-Control: no-store, no-transform\r\n"
    b"X-Content-Type-Options: nosniff\r\n"  # browsers hold back what they first have to guess the type of
    b"X-Accel-Buffering: no\r\n"
)

Word = Literal["write", "finish", "end", "lost", "slow", "leave"]
Tell = Callable[["Said"], None]


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A request, as it is passed on. number and to: what is said of it goes to this topic, with this number."""

    endpoint: str
    body: bytes
    number: int
    to: str


class Said(msgspec.Struct, frozen=True, array_like=True):
    """What one side says to the other of a request: the owner `write`, `finish`, `end`; the asking worker the rest."""

    word: Word
    number: int
    by: str
    """the asking worker's topic"""
    data: bytes = b""
    response: Response | None = None


class Look(msgspec.Struct, frozen=True, array_like=True):
    """Whether a worker is there, and knows of these requests; its answer are those it does not know of.

    by: the topic of the worker that asks. here: requests to that one of sessions there. there: of its own sessions, there.
    """

    by: str
    here: list[int]
    there: list[int]


_asked = msgspec.msgpack.Decoder(Asked)
_said = msgspec.msgpack.Decoder(Said)
_look = msgspec.msgpack.Decoder(Look)
_response = msgspec.msgpack.Decoder(Response)
encode = msgspec.msgpack.encode
decode_asked = _asked.decode
decode_said = _said.decode
decode_look = _look.decode
decode_response = _response.decode


def topic_of(key: str, origin: str | None, id: str) -> str:
    """Where a session is asked for. Origins are as long as clients like."""
    return "#xhr-" + blake2b(repr((key, origin, id)).encode(), digest_size=16).hexdigest()


class Away:
    """A poll or a stream of a session here, on another worker. by: its topic. tell: says something there."""

    __slots__ = ("_ended", "_number", "_tell", "app", "by")

    def __init__(self, app: "App", number: int, by: str, tell: Tell, ended: Callable[[], object]) -> None:
        self.app = app
        self._number = number
        self.by = by
        self._tell = tell
        self._ended = ended

    def finish(self, response: Response) -> None:
        self._tell(Said("finish", self._number, self.by, b"", response))
        self._ended()

    def write(self, data: bytes) -> None:
        self._tell(Said("write", self._number, self.by, data))

    def close(self) -> None:
        self._tell(Said("end", self._number, self.by))
        self._ended()


class Afar:
    """The session of another worker, as a poll or a stream here sees it. tell: says something to its owner.

    owner: that worker's topic, once it has answered.
    """

    __slots__ = ("_by", "_ended", "_kept", "_number", "_over", "_tell", "app", "owner", "poll", "streams")

    def __init__(self, app: "App", number: int, by: str, tell: Tell, ended: Callable[[], object]) -> None:
        self.app = app
        self.owner = ""
        self._number = number
        self._by = by
        self._tell = tell
        self._ended = ended
        self._kept: list[Said] = []
        self._over = False
        self.poll: Poll | None = None
        self.streams: Stream | None = None

    def hear(self, said: Said) -> None:
        """What the owner says; it may be here before the request knows that it is expected."""
        if said.word == "finish" and said.response is not None and self.poll is not None:
            self._end()
            self.poll.finish(said.response)
        elif self.streams is None:
            self._kept.append(said)
        elif said.word == "write":
            self.streams.write(said.data)
        else:
            self._end()
            self.streams.close()

    def hold(self, poll: "Poll") -> "Afar | Response":
        """A poll waits, if it is not answered yet."""
        self.poll = poll
        for said in self._kept:
            if said.response is not None:
                self._end()
                return said.response
        return self

    def stream(self, stream: "Stream") -> None:
        """A stream has begun."""
        self.streams = stream
        kept, self._kept = self._kept, []
        for said in kept:
            self.hear(said)

    def lost(self, request: "Poll | Stream") -> None:
        """The socket of the request is gone."""
        self._say("lost")
        self._end()

    def too_slow(self, stream: "Stream") -> None:
        self._say("slow")

    def leave(self, code: int, reason: str) -> None:
        """This worker stops."""
        self._say("leave")

    def abandon(self) -> None:
        """The owner is gone. The client is told to begin anew."""
        if self._over:
            return
        self._say("lost")  # should the owner be there all the same
        self._end()
        frames = end_frames(4200, "The server of this session is gone, reconnect")
        if self.streams is not None:
            self.streams.write(frames)
            self.streams.close()
        elif self.poll is not None:
            self.poll.finish(Response(200, frames, TYPE, HEADERS))

    def _say(self, word: Word) -> None:
        if not self._over:
            self._tell(Said(word, self._number, self._by))

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ended()
