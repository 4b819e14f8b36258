"""Presence against a model: users with several sockets join and leave in any order.

The view of a client is the list it got when it joined, changed by each later `member_added` and `member_removed`.
The view must match the channel at any time (Pusher protocol, section 3). The test sends commands without waiting for replies,
so that hypothesis finds interleavings; before it compares, it waits for all commands.
"""

import contextlib
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.process import ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket, ask_to_sign_in, pusher_socket
from tests.support.raw_socket import RawSocket, raw_socket

ADDED, REMOVED = "pusher_internal:member_added", "pusher_internal:member_removed"
SOCKETS = 5
USERS: list[int | str] = [1, "1", 2, "two", "zwei@example.com"]
INFOS = [None, {"name": "A"}, {"name": "Ü", "more": [1, None]}]


class View:
    """The members in the view of one client: id → info."""

    def __init__(self) -> None:
        self.members: dict[str, Any] = {}

    def begin(self, presence: dict[str, Any]) -> None:
        assert sorted(presence["ids"]) == sorted(presence["hash"]), "ids and hash name the same users"
        assert presence["count"] == len(presence["ids"]) == len(set(presence["ids"])), "each counts once"
        self.members = dict(presence["hash"])

    def change(self, event: str, data: dict[str, Any]) -> None:
        user_id = data["user_id"]
        if event == ADDED:
            assert user_id not in self.members, f"{user_id} is added, and was there already"
            self.members[user_id] = data.get("user_info")
        else:
            assert event == REMOVED, event
            assert user_id in self.members, f"{user_id} is removed, and was not there"
            del self.members[user_id]


class ClientRequest:
    """One Pusher client. user: its user on the channel after the commands so far; None: it is not on the channel."""

    def __init__(self, socket: PusherSocket, channel: str) -> None:
        self.socket = socket
        self.channel = channel
        self.user: str | None = None
        self.signed_in: str | None = None
        self.quiet = True
        """whether its leave is confirmed, so that it must receive no further event"""
        self.view = View()

    def read(self) -> None:
        """Reads all events up to the answer to a ping."""
        for frame in self.socket.round_trip():
            if frame["event"] == "pusher:signin_success":
                continue
            assert frame["channel"] == self.channel, frame
            data = json.loads(frame["data"])
            if frame["event"] == "pusher_internal:subscription_succeeded":
                self.view.begin(data["presence"])
                self.quiet = False
            else:
                assert not self.quiet, f"it has left: {frame}"
                self.view.change(frame["event"], data)


class Presence(RuleBasedStateMachine):
    """The rules. examples: the number of examples so far, so that each has a channel of its own."""

    server: ServerProcess
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        Presence.examples += 1
        self.channel = f"presence-model-{Presence.examples}"
        self.visitors: list[ClientRequest] = []
        self.witness: RawSocket
        self.seen = View()

    @initialize()
    def begin(self) -> None:
        """A raw client is subscribed from the beginning: it is no member, and receives each change."""
        token = self.server.post("/apps/app-test/token/access/", {"channel": self.channel}).body.decode()
        self.witness = self.stack.enter_context(raw_socket(self.server, self.channel, query=f"token={quote(token)}"))
        self.server.until_sessions(self.channel, 1)
        self.visitors = [self.visitor() for _ in range(SOCKETS)]

    def visitor(self) -> ClientRequest:
        return ClientRequest(self.stack.enter_context(pusher_socket(self.server)), self.channel)

    @rule(who=st.integers(0, SOCKETS - 1), user=st.sampled_from(USERS), info=st.sampled_from(INFOS))
    def join(self, who: int, user: int | str, info: Any) -> None:
        """A client that is on the channel keeps its user."""
        visitor = self.visitors[who]
        visitor.socket.request_subscription(self.channel, {"user_id": user, "user_info": info})
        visitor.user = visitor.user or str(user)

    @rule(who=st.integers(0, SOCKETS - 1))
    def join_as_who_signed_in(self, who: int) -> None:
        visitor = self.visitors[who]
        if visitor.signed_in is None:
            visitor.signed_in = "two"
            ask_to_sign_in(visitor.socket, {"id": "two", "user_info": {"name": "Two"}})
        visitor.socket.request_subscription(self.channel)
        visitor.user = visitor.user or visitor.signed_in

    @rule(who=st.integers(0, SOCKETS - 1))
    def leave(self, who: int) -> None:
        self.visitors[who].socket.send("pusher:unsubscribe", {"channel": self.channel})
        self.visitors[who].user = None

    @rule(who=st.integers(0, SOCKETS - 1), user=st.sampled_from(USERS))
    def leave_and_join_at_once(self, who: int, user: int | str) -> None:
        self.leave(who)
        self.join(who, user, None)

    @rule(who=st.integers(0, SOCKETS - 1), abruptly=st.booleans())
    def vanish(self, who: int, abruptly: bool) -> None:
        """Ends a connection, with or without a close frame, and replaces it by another."""
        socket = self.visitors[who].socket
        if abruptly:
            socket.connection.socket.close()
        else:
            socket.close()
        self.visitors[who] = self.visitor()

    @rule()
    def look(self) -> None:
        """Each view equals the model, and so does the answer of the API."""
        there = [visitor for visitor in self.visitors if visitor.user is not None]
        truth = {visitor.user for visitor in there}
        for visitor in self.visitors:
            visitor.read()  # now the server has processed its commands
        wait_until(lambda: self.server.session_count(self.channel) == 1 + len(there), "lost clients are removed")
        for visitor in self.visitors:
            visitor.read()  # now it has received the changes of the others
            visitor.quiet = visitor.user is None
        for message in self.witness.round_trip():
            self.seen.change(message["event"], message["data"])
        assert set(self.seen.members) == truth
        for visitor in there:
            assert visitor.view.members == self.seen.members
        path = f"/apps/app-test/channels/{self.channel}"
        assert {user["id"] for user in self.server.signed("GET", f"{path}/users").json["users"]} == truth
        counted = self.server.signed("GET", path, query={"info": "user_count"}).json
        assert counted == {"occupied": True, "user_count": len(truth)}

    def teardown(self) -> None:
        with self.stack:
            if self.visitors:
                self.look()


@pytest.mark.timeout(400)  # hypothesis shrinks a failing example, which takes long
def test_member_list_of_each_client_matches_the_channel(server: ServerProcess) -> None:
    Presence.server = server
    run_state_machine_as_test(
        Presence,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
