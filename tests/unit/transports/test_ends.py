"""The ends of the sessions of lost connections, which a turn bounds."""

import time
from collections.abc import Callable

import pytest

from push1st.transports.ends import Ends
from push1st.transports.websocket_output import CLOSE_SECONDS
from tests.support.loop import Ticking, turns
from tests.support.mqtt_site import MqttSite
from tests.support.node import app_config
from tests.support.transport import Site, Transport
from tests.support.websocket import RAW, opened, said

AFTER = 100
"""the number of turns that the ends of other connections take"""


class Lost:
    """A lost connection. run: the end of its session."""

    def __init__(self, run: Callable[[], object] = lambda: None) -> None:
        self.ends = 0
        self._run = run

    def finish(self) -> None:
        self.ends += 1
        self._run()


class Worker:
    def __init__(self) -> None:
        self.failures: list[str] = []
        self.ends = Ends(Ticking(), self.failures.append)

    def lose(self, count: int) -> list[Lost]:
        lost = [Lost() for _ in range(count)]
        for one in lost:
            self.ends.add(one)
        return lost


async def test_single_session_ends_at_once() -> None:
    assert Worker().lose(1)[0].ends == 1


async def test_turn_bounds_the_ends_of_many_sessions() -> None:
    lost = Worker().lose(12)
    ended = []
    for _ in range(3):
        ended.append(sum(one.ends for one in lost))
        await turns(1)
    assert ended == [5, 10, 12]


async def test_later_turn_ends_a_session_at_once_again() -> None:
    worker = Worker()
    worker.lose(12)
    await turns()
    assert [one.ends for one in worker.lose(1)] == [1]


async def test_order_of_the_ends_is_the_order_of_the_losses() -> None:
    worker, order = Worker(), []
    for number in range(20):
        worker.ends.add(Lost(lambda number=number: order.append(number)))  # type: ignore[misc]
    await turns(8)
    assert order == list(range(20))


async def test_hastened_session_ends_once() -> None:
    worker = Worker()
    lost = worker.lose(12)
    assert worker.ends.hasten(lost[11])
    assert not worker.ends.hasten(lost[11])
    assert not worker.ends.hasten(lost[0])
    await turns()
    assert [one.ends for one in lost] == [1] * 12


async def test_all_sessions_end_before_a_stop() -> None:
    worker = Worker()
    lost = worker.lose(12)
    worker.ends.finish()
    assert [one.ends for one in lost] == [1] * 12


async def test_number_of_waiting_sessions_does_not_slow_down_each_end() -> None:
    worker = Worker()
    lost = worker.lose(100_000)
    began = time.process_time()
    worker.ends.finish()
    assert time.process_time() - began < 1
    assert all(one.ends == 1 for one in lost)


async def test_failed_end_is_reported_and_does_not_stop_others() -> None:
    def fail() -> None:
        raise ValueError

    worker = Worker()
    worker.ends.add(Lost(fail))
    lost = worker.lose(1)
    assert worker.failures == ["connection"]
    assert lost[0].ends == 1


# WebSockets


async def many(site: Site, *paths: str) -> list[Transport]:
    """Returns WebSockets. Each end takes a turn from now on."""
    clients = [await opened(site, path) for path in paths]
    site.context.ends = Ends(Ticking(1), site.context.failed)
    return clients


def lose_all(site: Site, *lost: Transport, end: Callable[[Transport], None]) -> None:
    """Loses connections. The session of the first one ends in this turn, and the others after `AFTER` turns."""
    end(lost[0])
    for _ in range(AFTER):
        site.context.ends.add(Lost())
    for client in lost[1:]:
        end(client)


def lose(client: Transport) -> None:
    client.abort()
    client.protocol.connection_lost(None)


def end_input(client: Transport) -> None:
    if not client.protocol.eof_received():
        client.close()


@pytest.mark.parametrize("end", [lose, end_input])
async def test_waiting_session_of_a_websocket_ends_in_a_later_turn(end: Callable[[Transport], None]) -> None:
    site = Site(app_config())
    first, second, other = await many(site, "/ws/app/app-key/c", "/ws/app/app-key/c", "/ws/app/app-key/c")
    lose_all(site, first, second, end=end)
    assert site.world.publish("c", b"1") == 2
    await turns(AFTER + 10)
    assert site.world.publish("c", b"2") == 1
    await turns()
    assert [one["data"] for one in said(other)] == [1, 2]
    assert first.late == second.late == []
    for client in (first, second):
        if end is end_input:
            assert client.closed
            lose(client)
    assert len(site.context.open) == 1
    assert not site.failures


class Tls:
    """The TLS object of a connection, which has a reference to the transport until `detach` is called."""

    is_detached = False

    def detach(self) -> None:
        self.is_detached = True


@pytest.mark.parametrize("is_mqtt", [True, False])
async def test_waiting_session_over_tls_leaves_no_cycle_of_references(is_mqtt: bool) -> None:
    tls, lost = Tls(), Lost()
    if is_mqtt:
        mqtt = MqttSite()
        context, transport = mqtt.context, (await mqtt.connected()).transport
    else:
        site = Site(app_config())
        context, transport = site.context, await opened(site)
    transport._extra |= {"sslcontext": object(), "ssl_object": tls}  # type: ignore[attr-defined]
    context.ends = Ends(Ticking(1), context.failed)
    context.ends.add(lost)
    assert not transport.protocol.eof_received()
    transport.protocol.connection_lost(None)
    assert tls.is_detached


async def test_lost_connections_do_not_count_for_the_limit_of_an_app() -> None:
    site = Site(app_config({"connections": 2}))
    first, second = await many(site, "/ws/app/app-key/c", "/ws/app/app-key/c")
    lose_all(site, first, second, end=lose)
    others = [await opened(site, "/ws/app/app-key/c") for _ in range(2)]
    assert [one.is_closing() for one in others] == [False, False]
    assert len(site.world.app.tenant.sessions) == 2


async def test_lost_connections_end_when_the_server_is_full() -> None:
    site = Site(app_config())
    lose_all(site, *await many(site, RAW, RAW, RAW), end=lose)
    assert len(site.context.open) == 2
    site.context.refuse_crowded("server")
    assert len(site.context.open) == 0


async def test_client_that_reads_nothing_is_disconnected_after_its_end() -> None:
    site = Site(app_config())
    first, second = await many(site, RAW, RAW)
    end_input(first)
    assert second.protocol.eof_received()
    await turns()
    assert second.closed
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert second.aborted
