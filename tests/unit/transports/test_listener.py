"""What connections of a worker share: limits that follow from the apps, and answers written once a turn."""

import pytest

from push1st.config import ProtocolConfig, ServerConfig
from push1st.messages import Subscribe
from tests.unit.fakes import Site, app_config, turns


class Connection:
    """Answers everything that arrives, and says what it does."""

    def __init__(self, site: Site, log: list[str], name: str, fails: str = "") -> None:
        self.site = site
        self.log = log
        self.name = name
        self.fails = fails

    def process(self, data: bytes) -> bool:
        self.log.append(f"{self.name} works on {data.decode()}")
        self.site.worker.turn.answering.append(self)
        if self.fails == "process":
            raise ValueError("a defect")
        return False

    def hold_reading(self, hold: bool) -> None: ...

    def flush(self) -> None:
        self.log.append(f"{self.name} answers")
        if self.fails == "flush":
            raise ValueError("a defect")

    def abort(self) -> None:
        self.log.append(f"{self.name} is destroyed")


def test_a_body_may_hold_a_full_batch():
    site = Site(app_config({"payload": 100_000, "batch": 10}))
    assert site.worker.most_body >= 2 * 100_000 * 10


def test_a_body_may_have_what_the_configuration_says():
    assert Site(server=ServerConfig(max_payload=50_000_000)).worker.most_body == 50_000_000


def test_a_message_may_hold_the_largest_event():
    site = Site(app_config({"payload": 100_000}), app_config({"payload": 5}, id="small", key="small"))
    assert site.worker.most_message(ProtocolConfig(path="/ws/", max_payload=10)) >= 2 * 100_000


def test_a_message_may_have_what_its_protocol_says():
    assert Site().worker.most_message(ProtocolConfig(path="/ws/", max_payload=5_000_000)) == 5_000_000


async def test_a_turn_reads_all_then_works_then_writes_answers_before_deliveries():
    site = Site()
    worker, stage = site.worker, site.world
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


async def test_with_a_broker_that_confirms_later_deliveries_have_a_turn_of_their_own():
    site = Site()
    log: list[str] = []
    session, outlet = site.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    await turns(2)
    outlet.on_write = lambda: log.append("a delivery")
    site.world.memory.shared = True
    site.worker.arrived(Connection(site, log, "one"), b"a")
    site.world.publish("c", b"1")
    site.worker.turn.catch_up()
    assert log == ["one works on a", "one answers"]
    await turns(2)
    assert log[-1] == "a delivery"


@pytest.mark.parametrize("step", ["process", "flush"])
async def test_one_connection_that_fails_stops_no_other(step):
    site = Site()
    log: list[str] = []
    site.worker.arrived(Connection(site, log, "one", step), b"a")
    site.worker.arrived(Connection(site, log, "two"), b"b")
    await turns(1)
    assert "one is destroyed" in log
    assert log[-1] == "two answers"
    assert isinstance(site.failures[0], ValueError)


async def test_what_arrives_in_the_next_turn_is_worked_on_then():
    site = Site()
    log: list[str] = []
    one = Connection(site, log, "one")
    for n in range(2):
        site.worker.arrived(one, b"%d" % n)
        await turns(1)
    assert log == ["one works on 0", "one answers", "one works on 1", "one answers"]
