"""Views of members: each edge reaches clients once, and comparing finds missed edges."""

from itertools import count

import msgspec
import pytest

from push1st.brokers.redis.views import Views
from push1st.brokers.redis.wire import Edge
from push1st.messages import MEMBER_ADDED, MEMBER_REMOVED, Member, Message

KEY = ("app", "presence-c")


class Told:
    def __init__(self) -> None:
        self.views = Views()
        self.messages: list[Message] = []
        self.views.receive = self._receive
        numbers = count(1)
        self.stamp = lambda: (next(numbers), 7)

    def _receive(self, message: Message) -> int:
        self.messages.append(message)
        return 1

    def begin(self, *users: str) -> None:
        self.views.begin(KEY, {user: Member(user) for user in users})

    def edge(self, kind: str, user: str, socket: str = "1.1", *, here: bool = False) -> None:
        channel = KEY[1] if kind in "+-" else f"#watch-{user}"
        self.views.edge(Edge(kind, "app", channel, user, socket, 5, 7, b"null"), here)

    def compare(self, *users: str, **sockets: str) -> None:
        self.views.compare(KEY, {user: Member(user) for user in users}, sockets, self.stamp)

    @property
    def edges(self) -> list[str]:
        signs = {MEMBER_ADDED: "+", MEMBER_REMOVED: "-"}
        return [signs[one.event] + msgspec.json.decode(one.data)["user_id"] for one in self.messages]


@pytest.fixture
def told():
    return Told()


def test_edge_is_published_once(told):
    told.begin("a")
    for kind, user in (("+", "b"), ("+", "b"), ("+", "a"), ("-", "c"), ("-", "b"), ("-", "b")):
        told.edge(kind, user)
    assert told.edges == ["+b", "-b"]


def test_member_on_this_node_is_not_removed_by_a_node_that_evicted_this_one(told):
    told.begin("a")
    told.edge("-", "a", "", here=True)
    told.edge("+", "a", "", here=True)
    told.edge("-", "a", "1.1", here=True)  # the last connection in the server's entry belonged to another node
    assert told.edges == []


def test_edges_of_unfollowed_channels_pass(told):
    told.edge("+", "a")
    told.edge("-", "a")
    assert told.edges == ["+a", "-a"]


def test_missed_edges_are_published_after_comparing(told):
    told.begin("a", "b")
    told.compare("b", "c", "d", c="1.2")
    assert told.edges == ["-a", "+c", "+d"]
    assert [one.exclude for one in told.messages] == ["", "1.2", ""]
    told.compare("b", "c", "d")
    assert told.edges == ["-a", "+c", "+d"]


def test_a_view_that_ended_is_not_compared(told):
    told.begin("a")
    told.views.end(KEY)
    told.compare("b")
    assert told.edges == []
    assert told.views.members(KEY) is None


def test_the_first_view_stays_when_another_join_answers(told):
    told.begin("a")
    told.begin("a", "b")
    told.edge("+", "b")
    assert told.edges == ["+b"]


def test_a_watched_user_changes_once(told):
    told.views.watch("app", "u", False)
    for kind in ("off", "on", "on", "off"):
        told.edge(kind, "u")
    assert [msgspec.json.decode(one.data)["events"][0]["name"] for one in told.messages] == ["online", "offline"]
    assert told.views.status("app", "u", True) is False
    told.views.compare_status(("app", "u"), True, told.stamp)
    assert told.views.status("app", "u", False) is True
    assert len(told.messages) == 3


def test_a_user_signed_in_here_is_not_reported_offline_by_a_node_that_evicted_this_one(told):
    told.views.watch("app", "u", True)
    told.edge("off", "u", here=True)
    told.edge("on", "u", here=True)
    assert told.edges == []
    told.edge("off", "u")
    assert len(told.messages) == 1
