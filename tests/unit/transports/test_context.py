"""Shared state of a worker's connections: limits that follow from the apps, and answers that are written once a turn."""

import pytest

from push1st.brokers.memory import Memory
from push1st.config.model import ProtocolConfig
from push1st.limits import Limits
from push1st.messages import Subscribe
from tests.support.loop import turns
from tests.support.transport import Site


class Connection:
    """A connection that answers all input and logs its calls."""

    def __init__(self, site: Site, log: list[str], name: str, fails: str = "") -> None:
        self.site = site
        self.log = log
        self.name = name
        self.fails = fails

    is_new = False

    def process(self, data: bytes) -> bool:
        self.log.append(f"{self.name} works on {data.decode()}")
        self.site.context.turn.answering.append(self)
        if self.fails == "process":
            raise ValueError("a defect")
        return False

    def keep(self, data: bytes) -> None: ...

    def hold_reading(self, hold: bool) -> None: ...

    def flush(self) -> None:
        self.log.append(f"{self.name} answers")
        if self.fails == "flush":
            raise ValueError("a defect")

    def abort(self) -> None:
        self.log.append(f"{self.name} is destroyed")


def test_a_message_may_hold_the_largest_event_of_its_app():
    worker = Site().context
    protocol = ProtocolConfig(path="/ws/", max_payload=10)
    assert worker.max_message(protocol, Limits(payload=100_000)) >= 2 * 100_000
    assert worker.max_message(protocol, Limits(payload=5)) < 5000


def test_message_limit_follows_the_protocol():
    assert Site().context.max_message(ProtocolConfig(path="/ws/", max_payload=5_000_000), Limits()) == 5_000_000


async def test_a_turn_reads_all_then_works_then_writes_answers_before_deliveries():
    site = Site()
    worker, stage = site.context, site.world
    log: list[str] = []
    session, outlet = stage.session(push=frozenset())
    session.handle(Subscribe("c"))
    outlet.on_write = lambda: log.append("a delivery")
    one, two = Connection(site, log, "one"), Connection(site, log, "two")
    worker.arrived(one, b"a")
    worker.arrived(two, b"b")
    stage.publish("c", b"1")
    assert log == []
    await turns(1)
    assert log == ["one works on a", "two works on b", "one answers", "two answers", "a delivery"]


async def test_with_a_broker_that_confirms_later_deliveries_have_a_turn_of_their_own(monkeypatch):
    monkeypatch.setattr(Memory, "shared", True)
    site = Site()
    log: list[str] = []
    session, outlet = site.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    await turns(2)
    outlet.on_write = lambda: log.append("a delivery")
    site.context.arrived(Connection(site, log, "one"), b"a")
    site.world.publish("c", b"1")
    site.context.turn.catch_up()
    assert log == ["one works on a", "one answers"]
    await turns(2)
    assert log[-1] == "a delivery"


@pytest.mark.parametrize("step", ["process", "flush"])
async def test_one_connection_that_fails_stops_no_other(step):
    site = Site()
    log: list[str] = []
    site.context.arrived(Connection(site, log, "one", step), b"a")
    site.context.arrived(Connection(site, log, "two"), b"b")
    await turns(1)
    assert "one is destroyed" in log
    assert log[-1] == "two answers"
    assert isinstance(site.failures[0], ValueError)


async def test_input_of_the_next_turn_is_processed_in_that_turn():
    site = Site()
    log: list[str] = []
    one = Connection(site, log, "one")
    for n in range(2):
        site.context.arrived(one, b"%d" % n)
        await turns(1)
    assert log == ["one works on 0", "one answers", "one works on 1", "one answers"]
