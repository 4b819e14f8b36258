"""Webhooks of several workers: each event is sent once, on whichever worker it happened."""

from contextlib import ExitStack

from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import receiving


def sent(server: ServerProcess) -> int:
    (state,) = server.get("/apps/app-test/hooks").json["hooks"]
    return int(state["sent"])


def test_each_edge_is_sent_once_by_all_workers_together() -> None:
    with receiving() as receiver, ExitStack() as stack:
        webhooks = {"webhooks": [{"url": receiver.url, "events": ["channel_occupied", "member_added", "client_event"]}]}
        server = stack.enter_context(running({"server": {"workers": 2, "drain": 0}}, {"app-test": merged(APP, webhooks)}))
        clients = [stack.enter_context(pusher_socket(server)) for _ in range(8)]
        for number, client in enumerate(clients):
            client.subscribe("presence-room", {"user_id": str(number % 4)})
        clients[0].send("client-last", 1, "presence-room")
        wait_until(lambda: any(event["name"] == "client_event" for event in receiver.events), "the last event")
        wait_until(lambda: sent(server) == 6, "all is counted as sent")
        assert {sent(server) for _ in range(8)} == {6}  # either worker may answer
        names = [event["name"] for event in receiver.events]
        assert names == ["channel_occupied", *["member_added"] * 4, "client_event"]
        assert [event["user_id"] for event in receiver.events if event["name"] == "member_added"] == ["0", "1", "2", "3"]
