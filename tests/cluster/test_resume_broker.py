"""Clients recover, or are notified, when links to the broker fail, and when the broker loses its data."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.machine import figure, machine
from tests.support.blackhole import blackhole
from tests.support.process import running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Clients,
    PageClient,
    Publisher,
    RawClient,
    StreamClient,
    channels_of,
    clients_of,
    kept,
    together,
    until,
    until_joined,
    until_received,
    updated,
    verify,
)
from tests.support.recovery import Log, check
from tests.support.servers import Cluster, Watched, free_port
from tests.support.valkey import Valkey

STATE_LOST = {"unknown": 1, "state-lost": 1}


def until_notified(broker: str, channel: str, fail: Callable[[], None]) -> None:
    """Lets a broker fail, and checks that all clients are notified: those that are connected, and those that are away."""
    channels = channels_of(channel)[:2]
    with running(CONFIG | {"broker": f"{broker}?prefix=shop"}, kept()) as server, blackhole(server.ws_port) as proxy:
        live = clients_of([server.ws_port], channels, 1)
        away: list[Clients] = [PageClient(proxy.port, channels), RawClient(proxy.port, channels[:1])]
        publisher = Publisher([server.api_port], channels, 20)
        with together(*live, *away, publisher):
            until_joined([*live, *away])
            time.sleep(2 * ACKNOWLEDGE)
            proxy.refuses = True
            proxy.cut()
            fail()
            wait_until(lambda: publisher.published[-1].began > time.monotonic() - 0.5, "publishing goes on", 30)
            proxy.refuses = False
            until_joined([*live, *away], 2)
            time.sleep(1)
            verify(live, [publisher], recovered=0, reasons=STATE_LOST)
            verify(away, [publisher], recovered=0, reasons=[STATE_LOST, {"unknown": 2}])


@pytest.mark.parametrize(
    "persistent", [False, pytest.param(True, marks=pytest.mark.long)], ids=["without files", "with a log of its data"]
)
def test_clients_are_notified_after_a_restart_of_the_broker(channel: str, persistent: bool) -> None:
    """The restarted broker may lack the last messages and give their offsets again, so all positions are void."""
    options = ("--appendonly", "yes", "--appendfsync", "everysec") if persistent else ()
    with contextlib.closing(Valkey(*options)) as valkey:

        def restart() -> None:
            valkey.kill()
            time.sleep(0.5)
            valkey.start()

        until_notified(valkey.url, channel, restart)


def test_clients_are_notified_after_a_replica_that_lacks_events_became_the_master(tmp_path: Path, channel: str) -> None:
    """The new master gives the offsets of the lost events again (centrifugo#664)."""
    with contextlib.closing(Watched(tmp_path)) as watched:

        def fail_over() -> None:
            watched.replica.pause()
            watched.master.ask("CLIENT", "KILL", "TYPE", "replica")
            time.sleep(1)  # meanwhile, the master confirms events that the replica lacks
            watched.master.kill()
            watched.replica.go_on()

        until_notified(watched.url, channel, fail_over)


@pytest.mark.parametrize("seconds", [1, pytest.param(8, marks=pytest.mark.long)])
def test_gap_of_a_worker_whose_link_to_the_broker_was_cut_is_healed(channel: str, seconds: float) -> None:
    """Live clients of that worker get what was published meanwhile on another machine, in order and once."""
    channels = channels_of(channel)[:3]
    port = free_port()
    valkey = Valkey(port=port)
    try:
        with blackhole(port) as link:
            near = CONFIG | {"broker": f"redis://127.0.0.1:{port}/0?prefix=shop"}
            far = CONFIG | {"broker": f"redis://127.0.0.1:{link.port}/0?prefix=shop"}
            with running(far, kept()) as one, running(near, kept()) as two:
                clients = clients_of([one.ws_port], channels, 1)
                publisher = Publisher([two.api_port], channels, 40)
                with together(*clients, publisher):
                    until_joined(clients)
                    time.sleep(1)
                    link.refuses = True
                    link.cut()
                    time.sleep(seconds)
                    link.refuses = False
                    late = [PageClient(one.ws_port, channels) for _ in range(3)]  # joins at the same time as the healing
                    with together(*late):
                        until_joined(late)
                        time.sleep(2)
                        verify([*clients, *late], [publisher], recovered=0)
                    assert figure(one, "push1st_gaps_healed_total") > 0
    finally:
        valkey.close()


def test_gaps_of_connections_that_the_broker_ends_are_healed(valkey: Valkey, channel: str) -> None:
    channels = channels_of(channel)[:3]
    broker = CONFIG | {"broker": f"{valkey.url}?prefix=shop"}
    with machine(2, broker, kept()) as server:
        clients = clients_of([server.ws_port], channels, 1)
        publisher = Publisher([server.api_port], channels, 40)
        with together(*clients, publisher):
            until_joined(clients)
            for kind in ("pubsub", "normal"):
                time.sleep(1)
                valkey.ask("CLIENT", "KILL", "TYPE", kind)
            time.sleep(2)
            verify(clients, [publisher], recovered=0)


def test_full_broker_refuses_a_publish_as_a_whole(valkey: Valkey, channel: str) -> None:
    """A refused message has no offset, is not kept and not delivered; later messages follow without a gap."""
    with running(CONFIG | {"broker": f"{valkey.url}?prefix=shop"}, kept()) as server, blackhole(server.ws_port) as proxy:
        clients: list[Clients] = [PageClient(proxy.port, [channel]), RawClient(proxy.port, [channel])]
        publisher = Publisher([server.api_port], [channel], 20)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            valkey.ask("CONFIG", "SET", "maxmemory", "1")
            wait_until(lambda: 503 in publisher.statuses, "a publish is refused")
            time.sleep(1)
            valkey.ask("CONFIG", "SET", "maxmemory", "0")
            time.sleep(1)
            at = proxy.cut()
            until_joined(clients, 2)
            verify(clients, [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])


@pytest.mark.long
def test_broker_that_evicts_keys_by_itself_causes_no_gap_without_a_notification(valkey: Valkey, channel: str) -> None:
    """Any key may be evicted at any time, also the generation and the leases of the nodes."""
    channels = [f"{channel}-{number}" for number in range(20)]
    with running(CONFIG | {"broker": f"{valkey.url}?prefix=shop"}, kept()) as server, blackhole(server.ws_port) as proxy:
        clients: list[Clients] = [kind(proxy.port, channels[:3]) for kind in (PageClient, RawClient, StreamClient)]
        publisher = Publisher([server.api_port], channels, 20, padding=2000)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            valkey.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            valkey.ask("CONFIG", "SET", "maxmemory", str(valkey.used_memory + 300_000))
            for times in range(2, 8):
                time.sleep(2)
                proxy.cut()
                until_joined(clients, times)
            assert b"evicted_keys:0\r\n" not in valkey.ask("INFO", "stats")
            valkey.ask("CONFIG", "SET", "maxmemory", "0")
            joined = time.monotonic()  # a client that is not recovered gets only the events after its subscription
            wait_until(lambda: publisher.published[-1].began > joined, "publishing goes on")
            published = publisher.stop()
            until_received(clients, [one for one in published if one.channel in channels[:3]])
            for log in updated(clients):
                for one in log.channels:
                    answers = log.answers(one)
                    reasons = Counter(reason for reason in answers if reason is not None)
                    assert set(reasons) <= {"unknown", "state-lost", "trimmed"}
                    only = Log(log.name, [one], receives_own=log.receives_own)
                    only.entries = log.entries
                    check(only, published, recovered=answers.count(None), reasons=reasons, repeat_seconds=BOUND)


@pytest.mark.parametrize("lost", ["counter", "messages", "all"])
def test_keys_that_the_broker_evicted_are_not_taken_for_nothing_missed(valkey: Valkey, channel: str, lost: str) -> None:
    """Publishing goes on, also when only one of a channel's keys is gone."""
    with running(CONFIG | {"broker": f"{valkey.url}?prefix=shop"}, kept()) as server, blackhole(server.ws_port) as proxy:
        clients: list[Clients] = [PageClient(proxy.port, [channel]), RawClient(proxy.port, [channel])]
        publisher = Publisher([server.api_port], [channel], 20)
        with together(*clients):
            until_joined(clients)
            for _ in range(3):
                publisher.publish()
            until_received(clients, publisher.published)
            time.sleep(2 * ACKNOWLEDGE)
            proxy.refuses = True
            proxy.cut()
            publisher.publish()
            names = {"counter": ["hm"], "messages": ["h"], "all": ["h", "hm"]}[lost]
            found = valkey.ask("KEYS", f"*:h*{channel}*").decode().split("\r\n")[2::2]
            keys = [key for key in found if any(f":{name}:" in key for name in names)]
            assert len(keys) == len(names), found
            assert valkey.ask("DEL", *keys) == b":%d\r\n" % len(keys)
            publisher.publish()
            proxy.refuses = False
            until_joined(clients, 2)
            publisher.publish()
            reason = "trimmed" if lost == "messages" else "state-lost"
            verify(clients, [publisher], recovered=0, reasons={"unknown": 1, reason: 1})


def test_publish_that_the_broker_does_not_confirm_is_delivered_once_per_channel(channel: str) -> None:
    """The backend repeats the publish with the same idempotency key until it is confirmed."""
    channels = [f"{channel}-{number}" for number in range(3)]
    port = free_port()
    valkey = Valkey(port=port)
    try:
        with blackhole(port) as link:
            far = CONFIG | {"broker": f"redis://127.0.0.1:{link.port}/0?prefix=shop"}
            near = CONFIG | {"broker": f"redis://127.0.0.1:{port}/0?prefix=shop"}
            with running(far, kept()) as one, running(near, kept()) as two:
                clients = clients_of([two.ws_port], channels, 1)
                publisher = Publisher([one.api_port], channels, 20)
                with together(*clients, publisher):
                    until_joined(clients)
                    time.sleep(1)
                    before = len(publisher.published)
                    link.drop("down")
                    wait_until(lambda n=before: any(one.attempts > 1 for one in publisher.published[n:]), "a repeat", 20)  # type: ignore[misc]
                    verify(clients, [publisher], recovered=0)
                    assert publisher.repeated > 0
                    assert 503 in publisher.statuses
                    logs = updated(clients)
                    assert all(len(log.seqs(name)) == len(set(log.seqs(name))) for log in logs for name in channels)
    finally:
        valkey.close()


def test_publish_while_a_shard_is_away_is_delivered_once_per_channel(channel: str) -> None:
    """The backend repeats the publish to three channels with the same idempotency key; the shard of one of them is away."""
    with contextlib.closing(Cluster()) as cluster:
        for master in cluster.servers:
            master.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        with running(CONFIG | {"broker": f"{cluster.url}?prefix=shop"}, kept()) as server:
            by_master = dict[Valkey, str]()
            for number in itertools.count():
                name = f"{channel}-{number}"
                server.publish(name, "other", 0)
                (holder,) = [one for one in cluster.servers if one.ask("KEYS", f"*:hm:*/{name}") != b"*0\r\n"]
                by_master.setdefault(holder, name)
                if len(by_master) == len(cluster.servers):
                    break
            channels = list(by_master.values())
            clients: list[Clients] = [kind(server.ws_port, channels) for kind in (PageClient, RawClient, StreamClient)]
            body = {"name": "e", "channels": channels, "data": {"seq": 1}, "idempotency_key": "k"}
            with together(*clients):
                until_joined(clients)
                away = list(by_master)[1]
                away.pause()
                try:
                    statuses = [server.post("/apps/app-test/events", body).status for _ in range(5)]
                finally:
                    away.go_on()
                assert statuses == [503] * 5
                wait_until(lambda: server.post("/apps/app-test/events", body).status == 200, "the shard is back", 30)
                until(clients, lambda log, name: log.seqs(name) == [1], "one event on each channel")
                for name in channels:
                    server.publish(name, "e", {"seq": 2})
                until(clients, lambda log, name: log.seqs(name) == [1, 2], "no event is repeated")
