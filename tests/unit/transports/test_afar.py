"""The session of another worker, as a request here sees it."""

import pytest

from push1st.messages import Response
from push1st.protocols.pusher_xhr import end_frames
from push1st.transports.afar import Afar, Said
from push1st.transports.xhr import Stream

END = end_frames(4200, "The server of this session is gone, reconnect")


class Request:
    """A poll or a stream that writes down what it is given."""

    def __init__(self) -> None:
        self.got: list[object] = []

    def finish(self, response: Response) -> None:
        self.got.append(response.body)

    def write(self, data: bytes) -> None:
        self.got.append(data)

    def close(self) -> None:
        self.got.append("end")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def afar(said: list[str]) -> Afar:
    def tell(one: Said) -> None:
        said.append(one.word)

    return Afar(None, 1, "#xhr-at-here", tell, lambda: said.append("forgotten"))  # type: ignore[arg-type]


def test_a_stream_whose_owner_is_gone_ends_with_the_word_to_reconnect(afar, said):
    stream = Request()
    afar.stream(stream)
    afar.abandon()
    afar.abandon()
    assert stream.got == [END, "end"]
    assert said == ["lost", "forgotten"]


def test_a_poll_whose_owner_is_gone_is_answered_so(afar, said):
    poll = Request()
    afar.hold(poll)
    afar.abandon()
    assert poll.got == [END]
    assert said == ["lost", "forgotten"]


def test_what_the_owner_has_ended_itself_is_not_ended_again(afar):
    stream = Request()
    afar.stream(stream)
    afar.hear(Said("end", 1, "#xhr-at-here"))
    afar.abandon()
    assert stream.got == ["end"]


def test_a_stream_that_never_began_is_given_up_at_its_owners(afar, said):
    Stream(afar, None).lost(None)  # type: ignore[arg-type]
    assert said == ["lost", "forgotten"]
