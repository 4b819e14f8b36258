"""The contract of the sessions of MQTT clients and of their logs. A new implementation is one line in `IMPLEMENTATIONS`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import pytest

from push1st.brokers import Broker
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.redis import Redis
from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import (
    MAX_ADDRESS_ABSENT,
    MAX_LOGS_OF_MESSAGE,
    Claim,
    Cursor,
    DueSession,
    LogPage,
    Owner,
    SavedFlow,
    SavedMessage,
    SavedSession,
    SavedSubscription,
    SavedWill,
    Sessions,
    decode_session,
    encode_session,
    storable,
)
from push1st.config.history import HistoryBounds
from push1st.config.mqtt import Mqtt
from push1st.eager import resolve
from push1st.errors import LimitReached, Refused
from push1st.filters import MAX_NODES
from push1st.messages import INTERNAL, KeptMessage, Message, MqttFields, MqttMessage, Published, user_channel
from push1st.metrics import Metrics
from push1st.positions import Position
from tests.contract.redis import NOW, cluster, redis_broker, valkey

APP, CLIENT = "app-a", "device-1"
SECOND = 1_000_000_000
HOUR = 3600
ANYBODY, USER, OTHER = Owner("anonymous"), Owner("user", "ada"), Owner("user", "eve")
NEWS = "sensors.kitchen"
SHARED = f"$share/team/{NEWS}"
GROUPED = ((2, ""), (2, SHARED), (1, SHARED), (2, SHARED))
"""QoS and group of messages"""


class Site:
    """A broker with sessions, and a clock that the test sets."""

    def __init__(self, broker: Broker, wall: list[int], metrics: Metrics) -> None:
        self.broker = broker
        self.wall = wall
        self.metrics = metrics
        self.ids = count(1)
        self.delivered: list[int] = []
        self.subscribers = 0

    async def open(self) -> None:
        await self.broker.open(self._receive, lambda _: None, lambda *_: b"", lambda *_: None)

    def _receive(self, message: Message) -> int:
        self.delivered.append(message.id)
        return self.subscribers

    @property
    def sessions(self) -> Sessions:
        assert self.broker.sessions is not None
        return self.broker.sessions

    async def advance(self, seconds: float) -> None:
        """Sets the clocks of this node and of the server forward."""
        self.wall[0] += int(seconds * SECOND)
        if isinstance(self.broker, Redis):
            for shard in self.broker._shards.all:
                key = shard.keys.key("wall")
                left = await shard.connection.call("PTTL", key)
                if left > 0:
                    await shard.connection.call("PEXPIRE", key, left - int(seconds * 1000))

    def message(self, channel: str = NEWS, qos: int = 1, data: bytes = b"1", **fields: Any) -> MqttMessage:
        values: dict[str, Any] = {"sender": "1.1", "mqtt": MqttFields(qos), **fields}
        return MqttMessage(values.pop("app", APP), channel, "message", data, next(self.ids), self.wall[0], **values)

    async def publish(self, channel: str = NEWS, qos: int = 1, data: bytes = b"1", **fields: Any) -> int:
        """Publishes a message of an MQTT client. Returns the message's id."""
        message = self.message(channel, qos, data, **fields)
        await self.send(message)
        return message.id

    async def send(self, message: Message) -> Published:
        return await resolve(self.broker.publish(message))

    async def connect(self, client: str = CLIENT, owner: Owner = USER, **claim: Any) -> "Connection":
        values: dict[str, Any] = {"expiry": HOUR, **claim}
        claimed = await self.sessions.claim(APP, client, Claim(owner, **values))
        if claimed.ended is not None:
            await self.sessions.confirm([claimed.ended])
        return Connection(self, client, claimed.generation, claimed.session)

    async def absent(self, *filters: str, client: str = CLIENT, owner: Owner = USER, qos: int = 1, **session: Any) -> None:
        """Makes a client absent that is subscribed to filters."""
        connection = await self.connect(client, owner)
        cursors: dict[str, Cursor | None] = {}
        for filter in filters if qos else ():
            cursors[filter] = await self.sessions.logs.watch(APP, client, connection.generation, filter, owner == ANYBODY)
        subscriptions = tuple(SavedSubscription(one, qos, cursor=cursors.get(one)) for one in filters)
        values: dict[str, Any] = {"expiry": HOUR, **session}
        await connection.save(SavedSession(subscriptions=subscriptions, **values))

    async def due(self, seconds: float = 0) -> list[DueSession]:
        """Returns the due sessions after some seconds, without their generations and filters, and confirms them."""
        await self.advance(seconds)
        found = await self.sessions.due(self.wall[0])
        await self.sessions.confirm(found)
        return [msgspec.structs.replace(one, generation=0, watched=()) for one in found]


class Connection:
    """A connection of a client. session: the session that it resumes."""

    def __init__(self, site: Site, client: str, generation: int, session: SavedSession | None) -> None:
        self.site = site
        self.client = client
        self.generation = generation
        self.session = session

    def cursor(self, filter: str = NEWS) -> Cursor:
        assert self.session is not None
        (found,) = (one for one in self.session.subscriptions if one.filter == filter)
        assert found.cursor is not None
        return found.cursor

    async def page(self, filter: str = NEWS, limit: int = 1000, before: Cursor | None = None) -> LogPage:
        return await self.site.sessions.logs.read(APP, filter, self.cursor(filter), limit, before)

    async def missed(self, filter: str = NEWS) -> list[int]:
        """Returns the ids of the messages in the log of a filter."""
        return [one.id for one in (await self.page(filter)).messages]

    async def save(self, session: SavedSession) -> int:
        return await self.site.sessions.save(APP, self.client, self.generation, session)

    async def attach(self) -> bool:
        return await self.site.sessions.attach(APP, self.client, self.generation)

    async def end(self, *filters: str) -> int:
        return await self.site.sessions.end(APP, self.client, self.generation, filters)


@asynccontextmanager
async def memory() -> AsyncIterator[Site]:
    numbers, wall, metrics = count(1), [NOW], Metrics()
    history = MemoryHistory(HistoryBounds(), lambda: wall[0], lambda _: next(numbers), metrics)
    sessions = MemorySessions(lambda: wall[0], lambda _: next(numbers), metrics, Mqtt())
    site = Site(Memory(lambda: (next(numbers), wall[0]), LocalRoster(), history, sessions), wall, metrics)
    await site.open()
    yield site


@asynccontextmanager
async def redis(url: str) -> AsyncIterator[Site]:
    wall = [NOW]
    broker = redis_broker(url, wall=lambda: wall[0])
    site = Site(broker, wall, broker._shards.all[0].roster._context.metrics)
    await site.open()
    try:
        yield site
    finally:
        await broker.close()


Implementation = Callable[[], AbstractAsyncContextManager[Site]]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "memory": memory,
    "redis": lambda: redis(valkey().url),
    "redis-cluster": lambda: redis(cluster().url),
}


IN_MEMORY = pytest.mark.parametrize("sites", ["memory"], indirect=True)
"""only for the memory broker"""


@pytest.fixture(params=IMPLEMENTATIONS)
def sites(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


WILL = SavedWill("wills/ada", b"gone", 1, True, 60, b"\x01\x00", 5, "bye", ("private-*",))


def full_session() -> SavedSession:
    message = MqttMessage(APP, "a", "message", b'"x"', 1, NOW, "1.1", mqtt=MqttFields(2, True, NOW, b"\x01\x01"))
    flow = SavedFlow(7, ((5, SavedMessage(message, 2, True, (1, 2))), (6, None)), (SavedMessage(message, 1),), ((9, 12345),))
    subscriptions = (
        SavedSubscription("a.+", 2, True, True, 9, (Position("epoch", 4),)),
        SavedSubscription("ü", 0),
    )
    return SavedSession(HOUR, subscriptions, flow, WILL)


# Sessions


def test_saved_session_is_equal_after_encoding() -> None:
    assert decode_session(encode_session(full_session())) == full_session()


def test_storable_message_has_the_fields_of_every_kind_of_message() -> None:
    plain = Message(APP, "a", "e", b"1", 1, NOW, exclude="2.2")
    kept = KeptMessage(APP, "a", "e", b"1", 1, NOW, offset=3, epoch="x")
    kept.mqtt = MqttFields(2)
    assert storable(plain) == MqttMessage(APP, "a", "e", b"1", 1, NOW, exclude="2.2")
    assert storable(kept) == MqttMessage(APP, "a", "e", b"1", 1, NOW, mqtt=MqttFields(2))


async def test_unknown_client_begins_a_new_session(sites: Implementation) -> None:
    async with sites() as site:
        assert (await site.connect()).session is None


async def test_saved_session_is_resumed(sites: Implementation) -> None:
    async with sites() as site:
        saved = full_session()
        assert await (await site.connect()).save(saved)
        assert (await site.connect()).session == saved


async def test_session_is_resumed_again_if_its_connection_ends_before_attaching(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        first = await site.publish()
        connection = await site.connect()
        assert connection.session is not None
        await connection.save(connection.session)
        second = await site.publish()
        assert await (await site.connect()).missed() == [first, second]


async def test_clean_start_ends_the_session(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        assert (await site.connect(clean=True)).session is None
        assert (await site.connect()).session in (None, SavedSession(HOUR))  # a shared broker has a copy of the new session


async def test_connection_without_expiry_resumes_the_session(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        connection = await site.connect(expiry=0)
        assert connection.session is not None
        assert await connection.end(NEWS)
        assert (await site.connect()).session is None


async def test_connection_without_expiry_has_no_session(sites: Implementation) -> None:
    async with sites() as site:
        connection = await site.connect(expiry=0)
        assert not await connection.save(SavedSession(HOUR))


async def test_expired_session_is_not_resumed(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        await site.advance(HOUR)
        assert (await site.connect(owner=OTHER)).session is None


async def test_ended_session_is_not_resumed(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        connection = await site.connect()
        await connection.attach()
        assert await connection.end(NEWS)
        assert (await site.connect()).session is None


@pytest.mark.parametrize("clean", [False, True])
async def test_identified_client_ends_the_session_of_an_anonymous_client(sites: Implementation, clean: bool) -> None:
    async with sites() as site:
        await site.absent(NEWS, owner=ANYBODY)
        assert (await site.connect(owner=USER, clean=clean)).session is None
        with pytest.raises(Refused, match="another owner"):
            await site.connect(owner=ANYBODY)


@pytest.mark.parametrize("owner", [ANYBODY, OTHER, Owner("name", "ada")])
async def test_session_of_another_owner_is_not_resumed_or_ended(sites: Implementation, owner: Owner) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        for clean in (False, True):
            with pytest.raises(Refused, match="another owner"):
                await site.connect(owner=owner, clean=clean)
        assert (await site.connect()).session is not None


async def test_anonymous_clients_with_the_client_id_resume_its_session(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, owner=ANYBODY)
        assert (await site.connect(owner=ANYBODY)).session is not None


async def test_sessions_of_two_apps_are_separate(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        assert (await site.sessions.claim("app-b", CLIENT, Claim(OTHER, expiry=1))).session is None


async def test_earlier_generation_changes_nothing(sites: Implementation) -> None:
    async with sites() as site:
        old = await site.connect()
        new = await site.connect()
        assert new.generation > old.generation
        assert await new.save(SavedSession(HOUR, (SavedSubscription(NEWS, 1),)))
        assert not await old.save(SavedSession(HOUR))
        assert not await site.sessions.store(APP, CLIENT, old.generation, SavedSession(HOUR))
        assert not await old.attach()
        assert not await old.end(NEWS)
        resumed = await site.connect()
        assert resumed.session is not None
        assert len(resumed.session.subscriptions) == 1


async def test_generation_grows_over_the_end_of_a_session(sites: Implementation) -> None:
    async with sites() as site:
        first = await site.connect()
        await first.end()
        assert (await site.connect()).generation > first.generation


@pytest.mark.parametrize("sites", ["memory", "redis"], indirect=True)  # a cluster has a bound for each shard
async def test_address_has_a_bound_for_sessions_of_anonymous_clients(sites: Implementation) -> None:
    async with sites() as site:
        for number in range(MAX_ADDRESS_ABSENT):
            connection = await site.connect(str(number), ANYBODY, address="192.0.2.1")
            await connection.save(SavedSession(HOUR))
        with pytest.raises(LimitReached):
            await site.connect("new", ANYBODY, address="192.0.2.1")
        for other in ("192.0.2.2", ""):
            assert (await site.connect(f"new-{other}", ANYBODY, address=other)).generation
        assert (await site.connect("new", USER, address="192.0.2.1")).generation
        assert (await site.connect("0", ANYBODY, address="192.0.2.1")).session is not None
        assert (await site.connect("again", ANYBODY, address="192.0.2.1")).generation


# Wills and ends


async def test_expired_session_is_due_once(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        assert not await site.due(HOUR - 1)
        assert await site.due(1) == [DueSession(APP, CLIENT, USER, None, True)]
        assert not await site.due(HOUR)


async def test_will_is_due_once_after_its_delay(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, will=WILL)
        assert not await site.due(59)
        assert await site.due(1) == [DueSession(APP, CLIENT, USER, WILL, False)]
        assert await site.due(HOUR) == [DueSession(APP, CLIENT, USER, None, True)]


async def test_will_is_due_when_its_session_ends_before_the_delay(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, will=WILL, expiry=30)
        assert await site.due(30) == [DueSession(APP, CLIENT, USER, WILL, True)]
        assert not await site.due(60)


async def test_will_of_a_resumed_session_is_never_due(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, will=WILL)
        connection = await site.connect()
        assert not await site.due(2 * HOUR)
        await connection.attach()
        assert not await site.due(2 * HOUR)


async def test_will_of_the_last_connection_is_due_after_its_own_delay(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(will=WILL)
        await site.advance(30)
        later = msgspec.structs.replace(WILL, delay=600)
        await site.absent(will=later)
        assert not await site.due(599)
        assert await site.due(1) == [DueSession(APP, CLIENT, USER, later, False)]


async def test_connection_that_ends_a_session_gets_its_will(sites: Implementation) -> None:
    async with sites() as site:

        async def ended(claim: Claim) -> DueSession | None:
            claimed = await site.sessions.claim(APP, CLIENT, claim)
            await site.sessions.end(APP, CLIENT, claimed.generation, ())
            if claimed.ended is None:
                return None
            await site.sessions.confirm([claimed.ended])
            return msgspec.structs.replace(claimed.ended, generation=0, watched=())

        await site.absent(NEWS, will=WILL)
        assert await ended(Claim(USER, clean=True)) == DueSession(APP, CLIENT, USER, WILL, True)
        assert not await site.due(HOUR)
        await site.absent(NEWS, will=WILL)
        await site.advance(HOUR)
        assert await ended(Claim(OTHER)) == DueSession(APP, CLIENT, USER, WILL, True)
        assert not await site.due(HOUR)
        assert await ended(Claim(USER)) is None


@pytest.mark.parametrize("end", ["expiry", "clean", "another owner", "resumed without expiry"])
async def test_ended_session_returns_the_messages_of_its_groups(sites: Implementation, end: str) -> None:
    """[MQTT-4.8.2-5]: except a message with QoS 2 whose delivery has begun."""
    async with sites() as site:
        own, begun, sent, waiting = [SavedMessage(site.message(qos=2), qos, group=group) for qos, group in GROUPED]
        flow = SavedFlow(4, ((1, own), (2, begun), (3, sent)), (waiting, own))
        owner = ANYBODY if end == "another owner" else USER
        await site.absent(SHARED, owner=owner, flow=flow)
        if end == "expiry":
            (ended,) = await site.due(HOUR)
        elif end == "resumed without expiry":
            connection = await site.connect(expiry=0)
            assert await connection.end(SHARED)
            (ended,) = await site.due()
        else:
            claimed = await site.sessions.claim(APP, CLIENT, Claim(USER, clean=end == "clean"))
            assert claimed.ended is not None
            await site.sessions.confirm([claimed.ended])
            ended = msgspec.structs.replace(claimed.ended, generation=0, watched=())
        assert ended == DueSession(APP, CLIENT, owner, None, True, returned=(sent, waiting))
        assert not await site.due(HOUR)


async def test_attached_session_returns_no_messages(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(SHARED, flow=SavedFlow(waiting=(SavedMessage(site.message(), 1, group=SHARED),)))
        connection = await site.connect(expiry=0)
        await connection.attach()
        assert await connection.end(SHARED)
        assert not await site.due(HOUR)


# Logs


async def test_absent_session_misses_no_message_of_its_filter(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        published = [await site.publish(qos=qos) for qos in (1, 2, 1)]
        assert await (await site.connect()).missed() == published


async def test_session_with_qos_0_has_no_log(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, qos=0)
        assert (await site.send(site.message())).logs == 0


async def test_log_begins_when_the_session_becomes_absent(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, client="other")
        await site.publish()
        await site.absent(NEWS)
        published = await site.publish()
        assert await (await site.connect()).missed() == [published]


@IN_MEMORY
async def test_log_grows_until_the_returning_session_attaches(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        connection = await site.connect()
        published = await site.publish()
        assert await connection.missed() == [published]
        await connection.attach()
        assert (await site.send(site.message())).logs == 0


async def test_log_ends_with_its_last_absent_session(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        await site.absent(NEWS, client="other", expiry=10)
        assert (await site.send(site.message())).logs == 1
        await site.due(10)
        assert (await site.send(site.message())).logs == 1
        await site.due(HOUR)
        assert (await site.send(site.message())).logs == 0


async def test_many_absent_sessions_share_one_log(sites: Implementation) -> None:
    async with sites() as site:
        for number in range(50):
            await site.absent(NEWS, client=f"device-{number}")
        message = site.message()
        assert (await site.send(message)).logs == 1
        for number in range(50):
            assert await (await site.connect(f"device-{number}")).missed() == [message.id]


@pytest.mark.parametrize("name", ["sensors.+", "sensors.#", "#", "+.kitchen", "sensors.kitchen.#"])
async def test_filter_with_wildcards_has_a_log(sites: Implementation, name: str) -> None:
    async with sites() as site:
        await site.absent(name)
        await site.publish("other.bath.x")
        published = await site.publish()
        assert published in await (await site.connect()).missed(name)


async def test_message_is_appended_once_to_each_log(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, "sensors.+", "#")
        await site.absent("#", client="other")
        message = site.message()
        assert (await site.send(message)).logs == 3
        connection = await site.connect()
        for name in (NEWS, "sensors.+", "#"):
            assert await connection.missed(name) == [message.id]


async def test_result_shows_whether_an_absent_client_has_the_message(sites: Implementation) -> None:
    async with sites() as site:
        assert await site.send(site.message()) == Published(0)
        await site.absent(NEWS)
        assert await site.send(site.message()) == Published(0, logs=1)
        assert await site.send(site.message("elsewhere")) == Published(0)


@IN_MEMORY
async def test_message_is_in_the_log_before_it_is_delivered(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        connection = await site.connect()
        seen: list[LogPage] = []

        def receive(_: Message) -> int:
            page = connection.page()
            with pytest.raises(StopIteration) as done:
                page.send(None)
            seen.append(done.value.value)
            return 0

        await site.broker.open(receive, lambda _: None, lambda *_: b"", lambda *_: None)
        published = await site.publish()
        assert [one.id for one in seen[0].messages] == [published]


async def test_only_messages_with_qos_1_and_2_are_kept(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent("#")
        kept = [
            await site.publish(qos=1),
            await site.publish(qos=2),
        ]
        await site.publish(qos=0)
        api = Message(APP, NEWS, "event", b"1", next(site.ids), NOW)
        await site.send(api)
        await site.send(Message(APP, NEWS, "client-event", b"1", next(site.ids), NOW, "1.1"))
        assert await (await site.connect()).missed("#") == [*kept, api.id]


async def test_internal_events_and_targeted_deliveries_are_not_kept(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent("#", NEWS)
        for message in (
            Message(APP, NEWS, INTERNAL + "member_added", b"{}", next(site.ids), NOW),
            Message(APP, NEWS, "event", b"1", next(site.ids), NOW, delivery="unicast", target="1.1"),
            Message(APP, NEWS, "event", b"1", next(site.ids), NOW, delivery="multicast", target="a"),
        ):
            assert (await site.send(message)).logs == 0


@IN_MEMORY
async def test_only_the_exact_channel_of_a_user_is_kept(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent("#", "+", user_channel("ada"), "#watch-ada")
        event = Message(APP, user_channel("ada"), "event", b"1", next(site.ids), NOW)
        assert (await site.send(event)).logs == 1
        assert (await site.send(Message(APP, "#watch-ada", "event", b"1", next(site.ids), NOW))).logs == 0
        assert await (await site.connect()).missed(user_channel("ada")) == [event.id]


@IN_MEMORY
async def test_first_wildcard_does_not_match_a_channel_that_begins_with_a_dollar(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent("#", "+.a", "$x.+")
        message = site.message("$x.a")
        assert (await site.send(message)).logs == 1


async def test_excluded_connection_is_kept_with_the_message(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        await site.publish(exclude="device-1.1.1")
        (message,) = (await (await site.connect()).page()).messages
        assert message.exclude == "device-1.1.1"


async def test_reader_gets_the_last_messages_first(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        published = [await site.publish() for _ in range(7)]
        connection = await site.connect()
        pages: list[list[int]] = []
        before: Cursor | None = None
        while not pages or before is not None:
            page = await connection.page(limit=3, before=before)
            pages.append([one.id for one in page.messages])
            before = page.before
        assert pages == [published[4:], published[1:4], published[:1]]


async def test_page_that_reaches_the_cursor_is_the_last(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        for _ in range(3):
            await site.publish()
        assert (await (await site.connect()).page(limit=3)).before is None


async def test_cursor_of_another_epoch_is_trimmed(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        assert await site.sessions.logs.read(APP, NEWS, (Position("another", 0),), 10) == LogPage(trimmed=True)


async def test_unwatched_filter_is_not_kept_after_the_next_absence(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, "other")
        connection = await site.connect()
        await site.sessions.logs.unwatch(APP, CLIENT, connection.generation, "other", False)
        await connection.attach()
        await connection.save(SavedSession(HOUR, (SavedSubscription(NEWS, 1),)))
        assert (await site.send(site.message("other"))).logs == 0
        assert (await site.send(site.message())).logs == 1


# Shared groups


@IN_MEMORY
async def test_shared_group_has_one_log_from_which_a_member_takes_messages(sites: Implementation) -> None:
    async with sites() as site:
        for client in ("one", "two"):
            await site.absent(SHARED, client=client)
        published = [await site.publish() for _ in range(3)]
        one, two = await site.connect("one"), await site.connect("two")
        logs = site.sessions.logs
        found = await logs.read_shared(APP, SHARED, 0, 2)
        assert [message.id for _, message in found] == published[:2]
        offsets = [offset for offset, _ in found]
        assert [*await logs.take(APP, "one", one.generation, SHARED, offsets[:1])] == offsets[:1]
        assert [*await logs.take(APP, "two", two.generation, SHARED, offsets)] == offsets[1:]
        (last,) = await logs.read_shared(APP, SHARED, offsets[-1], 2)
        assert last[1].id == published[2]


async def test_shared_log_and_plain_log_of_a_filter_are_separate(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS, SHARED, "$share/other/sensors.#")
        assert (await site.send(site.message())).logs == 3


@IN_MEMORY
async def test_earlier_generation_takes_nothing_from_a_shared_log(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(SHARED)
        await site.publish()
        old = await site.connect()
        await site.connect()
        ((offset, _),) = await site.sessions.logs.read_shared(APP, SHARED, 0, 10)
        assert not await site.sessions.logs.take(APP, CLIENT, old.generation, SHARED, [offset])


@IN_MEMORY
async def test_group_gives_messages_back_to_its_log(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(SHARED)
        messages = [site.message() for _ in range(2)]
        for filter in (SHARED, f"$share/other/{NEWS}"):
            await site.sessions.logs.give_back(APP, filter, messages)
        assert [one for _, one in await site.sessions.logs.read_shared(APP, SHARED, 0, 10)] == messages
        assert not await site.sessions.logs.read_shared(APP, f"$share/other/{NEWS}", 0, 10)


# Bounds of filters


@IN_MEMORY
async def test_filter_that_would_need_too_many_logs_for_a_message_is_rejected(sites: Implementation) -> None:
    async with sites() as site:
        logs, connection = site.sessions.logs, await site.connect()
        watched = [f"a.{'+.' * number}#" for number in range(MAX_LOGS_OF_MESSAGE - 1)]
        for filter in (*watched, *watched):
            await logs.watch(APP, CLIENT, connection.generation, filter, False)
        await logs.watch(APP, CLIENT, connection.generation, "a.b", False)
        for filter in ("a.+.b.#", "$share/g/a.b", "#", "$share/g/a.#"):
            with pytest.raises(LimitReached):
                await logs.watch(APP, CLIENT, connection.generation, filter, False)
        for filter in ("b.#", "b.+.c", "a.b", "a.c"):
            await logs.watch(APP, CLIENT, connection.generation, filter, False)
        for _ in range(2):
            await logs.unwatch(APP, CLIENT, connection.generation, watched[0], False)
        await logs.watch(APP, CLIENT, connection.generation, "a.+.b.#", False)


@IN_MEMORY
async def test_filters_of_anonymous_clients_have_a_tenth_of_the_logs_of_a_message(sites: Implementation) -> None:
    async with sites() as site:
        logs, most = site.sessions.logs, MAX_LOGS_OF_MESSAGE // ANONYMOUS_PART
        anybody = await site.connect("anybody", ANYBODY)
        for number in range(most):
            await logs.watch(APP, "anybody", anybody.generation, f"$share/{number}/a.b", True)
        for filter in ("$share/g/a.b", "a.b", "#"):
            with pytest.raises(LimitReached):
                await logs.watch(APP, "anybody", anybody.generation, filter, True)
        ada = await site.connect()
        for number in range(MAX_LOGS_OF_MESSAGE - most):
            await logs.watch(APP, CLIENT, ada.generation, f"$share/ada-{number}/a.b", False)
        for filter in ("a.b", "a.+", "#"):
            with pytest.raises(LimitReached):
                await logs.watch(APP, CLIENT, ada.generation, filter, False)
        await logs.unwatch(APP, "anybody", anybody.generation, "$share/0/a.b", True)
        await logs.watch(APP, CLIENT, ada.generation, "a.b", False)


@IN_MEMORY
async def test_filters_of_anonymous_clients_have_a_tenth_of_the_levels(sites: Implementation) -> None:
    async with sites() as site:
        logs = site.sessions.logs
        long, count = 199 * ".x" + ".+", MAX_NODES // ANONYMOUS_PART // 201
        await site.absent(*(f"{number}{long}" for number in range(count)), client="anybody", owner=ANYBODY)
        anybody, ada = await site.connect("other", ANYBODY), await site.connect()
        with pytest.raises(LimitReached):
            await logs.watch(APP, "other", anybody.generation, f"a{long}", True)
        for number in range(MAX_NODES // 201 - count):
            await logs.watch(APP, CLIENT, ada.generation, f"ada-{number}{long}", False)
        with pytest.raises(LimitReached):
            await logs.watch(APP, CLIENT, ada.generation, f"a{long}", False)
        await site.due(HOUR)
        await logs.watch(APP, "other", anybody.generation, f"a{long}", True)


async def test_many_filters_of_one_shape_need_one_log_for_a_message(sites: Implementation) -> None:
    async with sites() as site:
        connection = await site.connect()
        for number in range(3 * MAX_LOGS_OF_MESSAGE):
            for filter in (f"devices.{number}.+", f"devices.{number}", f"+.{number}"):
                await site.sessions.logs.watch(APP, CLIENT, connection.generation, filter, False)


@IN_MEMORY
async def test_ended_session_watches_no_filter(sites: Implementation) -> None:
    async with sites() as site:
        filters = [f"a.{'+.' * number}#" for number in range(MAX_LOGS_OF_MESSAGE - 1)]
        for clean in (True, False):
            await site.absent(*filters)
            if clean:
                await (await site.connect(clean=True)).end()
            else:
                await site.due(HOUR)
        await site.absent(*reversed(filters))
        with pytest.raises(LimitReached):
            await site.absent("a.+.b.#", client="other")


# Lists of absent sessions


async def test_absent_sessions_are_listed_in_pages(sites: Implementation) -> None:
    async with sites() as site:
        clients = [f"device-{number:02d}" for number in range(30)]
        for client in clients:
            await site.absent(NEWS, client=client)
        await site.connect("connected")
        found, after = list[str](), ""
        while True:
            page = await site.sessions.absent(APP, "", after, 7)
            assert len(page.sessions) <= 7
            found += [one.client_id for one in page.sessions]
            if not (after := page.next):
                break
        assert sorted(found) == clients
        some = await site.sessions.absent(APP, "device-1", "", 50)
        assert sorted(one.client_id for one in some.sessions) == clients[10:20]
        assert (await site.sessions.absent("nothing", "", "", 50)).sessions == ()
        assert (await site.sessions.absent(APP, "*", "", 50)).sessions == ()


async def test_list_shows_what_an_absent_session_has(sites: Implementation) -> None:
    async with sites() as site:
        message = SavedMessage(storable(site.message()), 1)
        flow = SavedFlow(inflight=((1, message), (2, None)), waiting=(message, message))
        await site.absent(NEWS, "x.+", flow=flow, expiry=100)
        (found,) = (await site.sessions.absent(APP, "", "", 5)).sessions
        assert (found.client_id, found.owner, found.expiry) == (CLIENT, USER, 100)
        assert found.until - found.since == pytest.approx(100, abs=1)
        assert (found.filters, found.count, found.waiting) == (((NEWS, 1), ("x.+", 1)), 2, 3)
        await site.absent(*(f"f.{number}" for number in range(60)), client="many", qos=0)
        (many,) = (await site.sessions.absent(APP, "many", "", 5)).sessions
        assert (len(many.filters), many.count, many.waiting) == (50, 60, 0)


async def test_returned_client_is_not_listed(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        await site.connect()
        assert (await site.sessions.absent(APP, "", "", 5)).sessions == ()


async def test_wrong_cursor_of_absent_sessions_is_an_error(sites: Implementation) -> None:
    async with sites() as site:
        await site.absent(NEWS)
        for cursor in ("x", ":", "1"):
            with pytest.raises(ValueError, match=cursor):
                await site.sessions.absent(APP, "", cursor, 5)
