"""A server stops and another process replaces it: the time until its clients have reconnected."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.nodejs import NodeProcess, start_pusher_js, subscribed
from tests.support.process import APP, ServerProcess, merged, push1st, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import receiving

BACK_SECONDS = 2.0
"""maximum time until clients have reconnected, after the new process is ready"""


@contextlib.contextmanager
def successor(server: ServerProcess) -> Iterator[ServerProcess]:
    """Starts a process with the same configuration when the first one stops; it is ready when the block begins."""
    server.signal()
    wait_until(lambda: server.get("/ready", port=server.unix).status == 503, "it stops")
    new = copy.copy(server)
    new.outputs = ("stdout-2", "stderr-2")
    try:
        yield new.start()
        assert server.wait() == 0
        new.stop_at_once()
        new.assert_quiet()
    finally:
        if new.process is not None and new.process.poll() is None:
            new.process.kill()
            new.process.wait()
        print(new.output)


def test_pusher_js_reconnects_soon_to_a_process_started_when_the_old_one_stops(
    node: Callable[..., NodeProcess], channel: str
) -> None:
    """The new process waits until the old one has released the address; then the old process disconnects its clients."""
    with running({"server": {"drain": 20}}) as server:  # 5 seconds for the new process to start
        clients = [start_pusher_js(node, server) for _ in range(3)]
        for client in clients:
            client.next(on="state", state="connected")
            subscribed(client, channel, "e")
        with successor(server) as new:
            ready = time.monotonic()
            for client in clients:
                client.next(on="state", state="connected")
                client.next(on="subscribed", channel=channel)
            assert time.monotonic() - ready < BACK_SECONDS
            new.publish(channel, "e", "hello")
            assert [client.next(on="event", event="e")["data"] for client in clients] == ["hello"] * 3
            assert server.wait() == 0
            assert new.get("/health", port=new.unix).status == 200, "the socket of the new one is still there"


def test_held_edges_of_the_old_process_are_sent_by_the_new_one(tmp_path: Path) -> None:
    """The new process has already looked for saved events when the old process saves them."""
    hooks = {"hooks": {"folder": str(tmp_path / "hooks")}, "server": {"drain": 8}}
    with receiving() as receiver, contextlib.ExitStack() as stack:
        webhooks = {"webhooks": [{"url": receiver.url, "events": ["member_added", "member_removed", "channel_vacated"]}]}
        server = stack.enter_context(running(hooks, {"app-test": merged(APP, webhooks)}))
        for user in ("leaves", "returns"):
            stack.enter_context(pusher_socket(server)).subscribe("presence-room", {"user_id": user})
        receiver.until_events("member_added", "member_added")
        with successor(server) as new, pusher_socket(new) as client:
            client.subscribe("presence-room", {"user_id": "returns"})
            wait_until(lambda: len(receiver.events) == 4, "a member has left", 25)
            users = [(event["name"], event.get("user_id")) for event in receiver.events[2:]]
            assert users == [("member_added", "returns"), ("member_removed", "leaves")]


def test_several_workers_leave_their_addresses_before_their_clients_leave() -> None:
    with running({"server": {"drain": 4, "workers": 2}}) as server, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(pusher_socket(server))
        with successor(server) as new, pusher_socket(new):
            assert server.wait() == 0
            assert new.get("/health", port=new.unix).status == 200, "the socket of the new ones is still there"


def test_a_new_process_does_not_wait_long_for_a_server_that_does_not_stop(server: ServerProcess, tmp_path: Path) -> None:
    listen = f"server: {{ listen: 'tcp://127.0.0.1:{server.ws_port}', drain: 0 }}\napi: {{ listen: false }}\n"
    (tmp_path / "server.yml").write_text(listen)
    failed = push1st("serve", "-c", str(tmp_path / "server.yml"), code=1)
    *_, said, last = failed.stderr.splitlines()
    assert "address in use, waiting until the other server stops" in said
    port = server.ws_port
    assert last.startswith(f"cannot listen on tcp://127.0.0.1:{port}: Address already in use: `")
    assert str(port) in last.partition("`")[2].partition("`")[0], "the command names the port"
    assert last.endswith("` shows the process; stop it, or change server.listen")
