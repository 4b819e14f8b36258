"""The version of the keys in the broker: nodes of one schema share a broker, a node of another schema is rejected."""

import contextlib
import signal
import subprocess
from pathlib import Path

import pytest

from push1st.brokers.redis.scripts import SCHEMA
from push1st.errors import Refused
from tests.cluster.places import Place, fast, on, status, until
from tests.docs.pages import ROOT
from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.valkey import Valkey

KEY = "push1st:{0}:schema"
UNVERSIONED = "407c95a51f453dd8fff20557b33c762f415fd096"
"""the commit of a build that wrote no schema"""
ROOM = "presence-room"


async def test_the_first_node_writes_the_schema(valkey: Valkey) -> None:
    place = await Place(valkey.url).open()
    assert valkey.ask("GET", KEY) == f"$1\r\n{SCHEMA}\r\n".encode()
    assert valkey.ask("TTL", KEY) == b":-1\r\n"
    await place.close()


async def test_node_writes_the_schema_if_the_keys_have_none(valkey: Valkey) -> None:
    """An unversioned build wrote the keys of schema 1, and no schema."""
    one = await Place(valkey.url).open()
    await on(one, ROOM, "ann")
    valkey.ask("DEL", KEY)
    two = await Place(valkey.url).open()
    assert (await on(two, ROOM, "bob")).members[ROOM] == {"ann", "bob"}
    assert valkey.ask("GET", KEY) == f"$1\r\n{SCHEMA}\r\n".encode()
    await one.close()
    await two.close()


async def test_a_node_is_rejected_by_keys_of_another_schema_and_changes_nothing(valkey: Valkey) -> None:
    valkey.ask("SET", KEY, "2")
    with pytest.raises(
        Refused, match=r"the keys push1st:\{0\}:\* have schema 2, and push1st .* uses schema 1: install a version"
    ):
        await Place(valkey.url, fast(patience=0.5)).open()
    assert valkey.ask("KEYS", "*") == f"*1\r\n${len(KEY)}\r\n{KEY}\r\n".encode()


async def test_a_running_node_publishes_nothing_while_the_keys_have_another_schema(valkey: Valkey) -> None:
    """This happens if the broker loses its state, and a newer node is the first to register again."""
    place = await Place(valkey.url, fast(backoff=0.05)).open()
    client = await on(place, "c")
    valkey.ask("FLUSHALL")
    valkey.ask("SET", KEY, "2")
    place.drop()
    await until(lambda: not place.connected and "schema 2" in place.shards[0].connection.reason)
    assert await status(place.publish("c", b"1")) == 503
    valkey.ask("SET", KEY, "1")
    await until(lambda: place.publishes)
    assert (await place.publish("c", b"2")).count == 1
    await until(lambda: client.messages["c"] == ["2"])
    await place.close()


@pytest.fixture
def old_source(tmp_path: Path) -> Path:
    """Extracts the source of a build that wrote no schema."""
    archive = tmp_path / "old.tar"
    done = subprocess.run(["git", "archive", "--output", archive, UNVERSIONED, "src"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip(f"this clone lacks commit {UNVERSIONED[:7]}; a complete clone has it: git fetch --unshallow")
    subprocess.run(["tar", "-x", "-f", archive, "-C", tmp_path], check=True)
    return tmp_path / "src"


def member(server: ServerProcess, user: str, stack: contextlib.ExitStack) -> PusherSocket:
    client = stack.enter_context(pusher_socket(server))
    client.subscribe(ROOM, {"user_id": user})
    return client


def users(server: ServerProcess) -> set[str]:
    return {user["id"] for user in server.signed("GET", f"/apps/app-test/channels/{ROOM}/users").json["users"]}


@pytest.mark.long
def test_an_unversioned_build_and_this_one_share_a_presence_channel_until_the_old_one_is_replaced(
    valkey: Valkey, old_source: Path, stack: contextlib.ExitStack
) -> None:
    config = {"broker": valkey.url}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(old_source))
        old = stack.enter_context(running(config))
    ann = member(old, "ann", stack)
    assert valkey.ask("EXISTS", KEY) == b":0\r\n", "the old build wrote a schema: it is not the build that this test needs"
    new = stack.enter_context(running(config))
    assert valkey.ask("GET", KEY) == f"$1\r\n{SCHEMA}\r\n".encode()
    bob = member(new, "bob", stack)
    assert ann.expect("pusher_internal:member_added", ROOM)["user_id"] == "bob"
    assert users(old) == users(new) == {"ann", "bob"}
    for server in (old, new):
        server.publish(ROOM, "e", "hello")
        for client in (ann, bob):
            assert client.receive()["data"] == "hello"
    old.signal(signal.SIGTERM)
    assert ann.close_code() == 4200
    old.wait()
    assert bob.expect("pusher_internal:member_removed", ROOM)["user_id"] == "ann"
    old.start()
    member(old, "ann", stack)
    assert bob.expect("pusher_internal:member_added", ROOM)["user_id"] == "ann"
    assert users(old) == users(new) == {"ann", "bob"}
