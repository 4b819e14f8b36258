"""An app whose configuration changes while the worker runs: the change takes effect in all that is derived from it."""

from collections.abc import Callable

import pytest

from push1st import auth
from push1st.apps.files import Files
from push1st.auth import Claims
from push1st.config.history import HistorySection
from push1st.config.model import AppConfig, Authorize, Webhook
from push1st.core.session import Session
from push1st.errors import Disconnect
from push1st.logs import MASK
from push1st.messages import Failure, Publish, SignIn, Subscribe, Subscribed
from tests.support.loop import done, turns
from tests.support.node import APP, KEY, RAW, Outlet, World, app_config, token
from tests.support.transport import Site


def configure(world: World, **changes) -> AppConfig:
    """Changes the configuration of the app, as a source of apps does."""
    config = app_config(**changes)
    world.node.apps = Files((config,))
    world.node.configure(config)
    return config


def masked(world: World, text: str) -> str:
    """Returns the reason that the log has for a rejection with this reason."""
    lines: list[str] = []

    class Lines:
        def refused(self, event: str, code: int, reason: str, where: object, mask: Callable[[str], str]) -> None:
            lines.append(mask(reason))

    world.node.refusals.watch(Lines(), ())
    world.node.refusals.log("command refused", 400, text)
    return lines[0]


def test_each_configuration_raises_the_version(world):
    tenant, version = world.app.tenant, world.app.version
    config = configure(world, name="new")
    assert (world.app.config, world.app.version) == (config, version + 1)
    assert world.node.app(config) is world.app
    assert world.app.tenant is tenant


def test_an_app_that_is_not_used_yet_begins_with_its_new_configuration():
    world = World(app_config(), other := app_config(id="other", key="k2"))
    config = app_config(id="other", key="k2", name="new")
    world.node.configure(config)
    assert world.node.app(config).config is config
    assert other.name == ""


def test_new_hook_events_are_reported_by_connected_clients(world):
    session, _ = world.session()
    session.handle(Subscribe("c"))
    assert "client-event" not in world.app.hook_kinds
    configure(world, webhooks=(Webhook(url="http://h/", events=("client_event",)),))
    session.handle(Subscribe("private-c", token(session, "private-c")))
    session.handle(Publish("private-c", "client-e", b"1"))
    assert [event.kind for event in world.hooks.hook_events if event.kind == "client-event"] == ["client-event"]
    configure(world)
    session.handle(Publish("private-c", "client-e", b"1"))
    assert [event.kind for event in world.hooks.hook_events].count("client-event") == 1


def test_a_changed_configuration_changes_which_channels_keep_a_history(world):
    def found() -> list[HistorySection | None]:
        history = world.app.history
        return [] if history is None else [history(channel) for channel in ("a-1", "b-1")]

    first, second = HistorySection(filter=("a-",)), HistorySection(filter=("b-",), size=5)
    assert found() == []
    configure(world, history=(first,))
    assert found() == [first, None]
    configure(world, history=(second, first))
    assert found() == [first, second]
    configure(world)
    assert found() == []


def test_a_message_is_kept_from_the_change_on(world):
    section = HistorySection(filter=("a-",))
    world.publish("a-1", b"1")
    configure(world, history=(section,))
    world.publish("a-1", b"1")
    configure(world)
    world.publish("a-1", b"1")
    page = done(world.history.read(APP, "a-1", None, 10, False))
    assert [message.offset for message in page.messages] == [1]


def test_a_backend_decides_from_the_change_on(world):
    session, outlet = world.session()
    session.handle(Subscribe("a"))
    assert world.hooks.asked == []
    configure(world, authorize=(Authorize(url="http://h/", on=frozenset(("subscribe",)), filter=("b",)),))
    session.handle(Subscribe("b"))
    session.handle(Subscribe("c"))
    assert [question.channel for question in world.hooks.asked] == ["b"]
    configure(world)
    session.handle(Subscribe("bb"))
    assert len(world.hooks.asked) == 1
    assert outlet.last == Subscribed("bb")


def test_rights_and_limits_hold_for_the_next_command(world):
    session, outlet = world.session()
    session.handle(Subscribe("private-c", token(session, "private-c")))
    configure(world, limits={"payload": 8, "subscriptions": 1})
    session.handle(Publish("private-c", "client-e", b'"123456789"'))
    assert isinstance(outlet.last, Failure)
    assert outlet.last.code == 413
    session.handle(Subscribe("d"))
    assert "d" not in session.subscriptions
    configure(world, client_messages=False)
    session.handle(Publish("private-c", "client-e", b"1"))
    assert (outlet.last.code, outlet.last.text) == (403, "client events are not enabled for this app")


def test_rates_of_the_api_begin_again(world):
    configure(world, limits={"publishes": 2, "reads": 2})
    now = world.clock.monotonic()
    for bucket in (world.app.publishes, world.app.reads):
        assert [bucket.take(now) for _ in range(3)] == [True, True, False]
    configure(world, limits={"publishes": 3, "reads": 3})
    for bucket in (world.app.publishes, world.app.reads):
        assert [bucket.take(now) for _ in range(4)] == [True, True, True, False]


def connections(world: World) -> int:
    return world.memory._connections.get(APP, 0)


def test_a_new_limit_of_connections_counts_new_connections_only(world):
    old, _ = world.session()
    configure(world, limits={"connections": 1})
    first, _ = world.session()
    with pytest.raises(Disconnect, match="quota"):
        world.session()
    old.expire()
    assert connections(world) == 1
    first.expire()
    assert connections(world) == 0
    assert not world.app.uncounted


def test_connections_are_counted_on_without_a_limit(world):
    configure(world, limits={"connections": 1})
    first, _ = world.session()
    configure(world)
    second, _ = world.session()
    assert connections(world) == 2
    configure(world, limits={"connections": 2})
    with pytest.raises(Disconnect, match="quota"):
        world.session()
    first.expire()
    second.expire()
    assert connections(world) == 0


def test_a_disabled_app_keeps_its_clients_and_rejects_others(world):
    session, outlet = world.session()
    configure(world, enable=False)
    session.handle(Subscribe("c"))
    assert outlet.last == Subscribed("c")


def test_subscription_counts_begin_with_the_change(world):
    session, outlet = world.session()
    configure(world, subscription_count=True)
    session.handle(Subscribe("c"))
    world.turns.drain()
    assert any(b"subscription_count" in write for write in outlet.writes)


def test_subscription_counts_end_with_the_change(world):
    configure(world, subscription_count=True)
    session, outlet = world.session()
    session.handle(Subscribe("c"))
    world.session()[0].handle(Subscribe("c"))
    world.turns.drain()
    outlet.writes.clear()
    configure(world)
    done(world.node.tick())
    world.turns.drain()
    assert outlet.writes == []


def test_a_changed_secret_signs_and_is_masked_in_the_log(world):
    world.node.refusals.enable(world.clock.monotonic, ["secret"])
    session, outlet = world.session()
    old = token(session, "private-c")
    configure(world, secret="another-secret")
    session.handle(Subscribe("private-c", old))
    assert outlet.last.kind == "AuthError"
    assert masked(world, "secret another-secret") == f"{MASK} {MASK}"


def test_each_of_several_secrets_is_masked_in_the_log(world):
    world.node.refusals.enable(world.clock.monotonic, [])
    configure(world, secret="new-secret", older_secrets=("older",))
    assert masked(world, "new-secret older") == f"{MASK} {MASK}"


OLD, NEW = "secret", "another-secret"
USER = '{"id":"u1"}'


def sign(session: Session, channel: str, secret: str) -> str:
    return f"{KEY}:{auth.channel_signature(secret, session.id, channel)}"


def ended(*outlets: Outlet) -> list[int]:
    """Returns the close code of each client, or 0."""
    return [outlet.closes[-1][0] if outlet.closes else 0 for outlet in outlets]


def test_each_of_several_secrets_verifies(world):
    configure(world, secret=NEW, older_secrets=(OLD,))
    session, outlet = world.session()
    for secret, channel in ((NEW, "private-new"), (OLD, "private-old")):
        session.handle(Subscribe(channel, sign(session, channel, secret)))
        assert outlet.last == Subscribed(channel)
    assert world.app.secret_use.counts == [1, 1]
    session.handle(Subscribe("private-none", sign(session, "private-none", "unknown")))
    assert outlet.last.kind == "AuthError"
    assert world.app.secret_use.counts == [1, 1]


async def test_a_retired_secret_ends_the_clients_that_only_it_verified(world):
    before, before_outlet = world.session()
    before.handle(Subscribe("private-c", sign(before, "private-c", OLD)))
    user, user_outlet = world.session()
    user.handle(SignIn(f"{KEY}:{auth.user_signature(OLD, user.id, USER)}", USER))
    _, token_outlet = world.session(wire=RAW, claims=Claims(APP, "*", ("private-*",), None), push=frozenset())
    public, public_outlet = world.session()
    public.handle(Subscribe("c"))
    configure(world, secret=NEW, older_secrets=(OLD,))
    new, new_outlet = world.session()
    new.handle(Subscribe("private-c", sign(new, "private-c", NEW)))
    late, late_outlet = world.session()
    late.handle(Subscribe("private-c", sign(late, "private-c", OLD)))
    mixed, mixed_outlet = world.session()
    mixed.handle(Subscribe("private-c", sign(mixed, "private-c", NEW)))
    mixed.handle(SignIn(f"{KEY}:{auth.user_signature(OLD, mixed.id, USER)}", USER))
    outlets = (before_outlet, user_outlet, token_outlet, public_outlet, new_outlet, late_outlet, mixed_outlet)
    await turns()
    assert ended(*outlets) == [0] * 7
    configure(world, secret=NEW)
    await turns()
    assert ended(*outlets) == [4200, 4200, 4009, 0, 0, 4200, 4200]
    assert world.metrics.cut_offs["secret-retired"] == 5
    assert world.app.secret_use is None


async def test_clients_with_tokens_of_the_first_secret_stay(world):
    configure(world, secret=NEW, older_secrets=(OLD,))
    outlets = []
    for place in (0, 1):
        claims = Claims(APP, "*", ("private-*",), None, place=place)
        outlets.append(world.session(wire=RAW, claims=claims, push=frozenset())[1])
    assert world.app.secret_use.counts == [1, 1]
    configure(world, secret=NEW)
    await turns()
    assert ended(*outlets) == [0, 4009]


async def test_a_secret_that_is_replaced_at_once_is_retired(world):
    session, outlet = world.session()
    session.handle(Subscribe("private-c", sign(session, "private-c", OLD)))
    configure(world, secret=NEW)
    await turns()
    assert ended(outlet) == [4200]


async def test_a_second_rotation_ends_the_clients_of_the_first_one(world):
    configure(world, secret=NEW, older_secrets=(OLD,))
    session, outlet = world.session()
    session.handle(Subscribe("private-c", sign(session, "private-c", NEW)))
    configure(world, secret=NEW)
    configure(world, secret="third", older_secrets=(NEW,))
    configure(world, secret=NEW, older_secrets=("third",))
    await turns()
    assert ended(outlet) == [0]
    configure(world, secret="third")
    await turns()
    assert ended(outlet) == [4200]


async def test_clients_that_the_backend_has_authorised_stay(world):
    decided = (Authorize(url="http://h/", on=frozenset(("subscribe",)), filter=("private-b",)),)
    configure(world, authorize=decided)
    backend, backend_outlet = world.session()
    backend.handle(Subscribe("private-b"))
    signed, signed_outlet = world.session()
    signed.handle(Subscribe("private-c", sign(signed, "private-c", OLD)))
    configure(world, authorize=decided, secret=NEW)
    await turns()
    assert ended(backend_outlet, signed_outlet) == [0, 4200]


def test_a_client_that_has_ended_is_forgotten(world):
    configure(world, secret=NEW, older_secrets=(OLD,))
    session, _ = world.session()
    session.handle(Subscribe("private-c", sign(session, "private-c", OLD)))
    session.expire()
    assert world.app.secret_use.change((NEW,)) == set()


def test_an_app_with_one_secret_records_no_clients(world):
    session, _ = world.session()
    session.handle(Subscribe("private-c", sign(session, "private-c", OLD)))
    configure(world, name="new")
    assert world.app.secret_use is None


def test_bodies_of_requests_follow_the_limits_of_the_app():
    site = Site()
    before = site.handlers.max_body(f"/apps/{APP}/events")
    config = app_config(limits={"payload": 1_000_000})
    site.handlers._apps._by_id[APP] = config  # type: ignore[attr-defined]
    site.node.configure(config)
    assert site.handlers.max_body(f"/apps/{APP}/events") > before


def test_components_that_derive_from_an_app_are_notified_once(world):
    found: list[AppConfig] = []
    world.node.on_configured.append(found.append)
    config = configure(world)
    assert found == [config]
    assert done(world.node.channels(world.app)) == []
