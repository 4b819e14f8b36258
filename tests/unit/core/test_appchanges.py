"""Apps that are added, changed, disabled and removed while the worker runs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from push1st.config.model import AppConfig, Authorize, Webhook
from push1st.core.appchanges import FORGET_SECONDS, AppChanges
from push1st.core.ending import MAX_ENDED, EndQueue
from push1st.messages import Failure, Publish, Subscribe
from tests.support.loop import turns
from tests.support.node import APP, World, app_config, token

OTHER = app_config(id="other", key="other-key")


class Changing:
    """A world whose apps change. `configured`: the configurations that the functions in `Node.on_configured` have received."""

    def __init__(self, *apps: AppConfig) -> None:
        self.world = World(*(apps or (app_config(), OTHER)))
        self.pauses: list[asyncio.Future[None]] = []
        self.world.node.ending = EndQueue(self._pause)
        self.changes = AppChanges(self.world.node, self.world.node.apps)  # type: ignore[arg-type]
        self.configured: list[AppConfig] = []
        self.world.node.on_configured.append(self.configured.append)

    async def _pause(self) -> None:
        self.pauses.append(asyncio.get_running_loop().create_future())
        await self.pauses[-1]

    def apply(self, *apps: AppConfig) -> Sequence[str]:
        """Applies configurations; returns the ids of the apps that have changed."""
        self.configured.clear()
        self.changes.apply(apps, self.changes.compare(apps))
        return [app.id for app in self.configured]


@pytest.fixture
def changing() -> Changing:
    return Changing()


async def test_only_apps_that_differ_change(changing: Changing) -> None:
    session, outlet = changing.world.session()
    assert changing.apply(app_config(), OTHER) == []
    assert changing.apply(app_config(), app_config(id="other", key="new-key")) == ["other"]
    assert changing.world.node.apps.by_key("new-key") is not None
    assert changing.world.node.apps.by_key("other-key") is None
    assert not session.closed
    assert outlet.closes == []


async def test_two_apps_exchange_their_keys_in_one_turn(changing: Changing) -> None:
    changing.apply(app_config(key="other-key"), app_config(id="other", key="app-key"))
    found = [changing.world.node.apps.by_key(key) for key in ("app-key", "other-key")]
    assert [app and app.id for app in found] == ["other", APP]


@pytest.mark.parametrize("apps", [(app_config(enable=False), OTHER), (OTHER,)], ids=["disabled", "removed"])
async def test_clients_of_an_app_that_ends_leave(changing: Changing, apps: tuple[AppConfig, ...]) -> None:
    _, outlet = changing.world.session()
    assert changing.apply(*apps) == [APP]
    await turns()
    assert not changing.configured[0].enable
    assert outlet.closes == [(4003, "App is disabled")]


async def test_clients_of_an_app_that_ends_leave_in_groups() -> None:
    changing = Changing()
    outlets = [changing.world.session()[1] for _ in range(2 * MAX_ENDED + 1)]
    changing.apply(OTHER)
    await turns()
    counts = []
    while changing.pauses:
        changing.changes.tick()
        await turns()
        counts.append(sum(bool(outlet.closes) for outlet in outlets))
        changing.pauses.pop().set_result(None)
        await turns()
    assert counts == [MAX_ENDED, 2 * MAX_ENDED]
    assert all(len(outlet.closes) == 1 for outlet in outlets)


async def test_clients_stay_if_their_app_is_enabled_again_before_they_leave() -> None:
    changing = Changing()
    outlets = [changing.world.session()[1] for _ in range(MAX_ENDED + 1)]
    changing.apply(app_config(enable=False), OTHER)
    await turns()
    changing.apply(app_config(), OTHER)
    await turns()
    changing.pauses.pop().set_result(None)
    await turns()
    assert sum(bool(outlet.closes) for outlet in outlets) == MAX_ENDED


async def test_a_client_that_connects_while_its_app_ends_leaves_a_second_later(changing: Changing) -> None:
    changing.apply(app_config(enable=False), OTHER)
    await turns()
    _, late = changing.world.session()  # the app was found before the change
    assert late.closes == []
    changing.changes.tick()
    await turns()
    assert [code for code, _ in late.closes] == [4003]


async def test_an_app_that_is_enabled_again_keeps_its_new_clients(changing: Changing) -> None:
    changing.apply(app_config(enable=False), OTHER)
    await turns()
    changing.apply(app_config(), OTHER)
    await turns()
    _, outlet = changing.world.session()
    changing.changes.tick()
    await turns()
    assert outlet.closes == []


async def test_a_removed_app_is_forgotten_after_its_last_client_has_left(changing: Changing) -> None:
    node, app = changing.world.node, changing.world.app
    session, _ = changing.world.session()
    changing.apply(OTHER)
    await turns()
    assert session.closed
    for _ in range(FORGET_SECONDS):
        changing.changes.tick()
        await turns()
        assert node.used.get(APP) is app
    changing.configured.clear()
    changing.changes.tick()
    await turns()
    changing.changes.tick()
    await turns()
    assert APP not in node.used
    (last,) = changing.configured
    assert (last.id, last.enable) == (APP, False)


async def test_the_hooks_of_a_removed_app_stay_until_its_clients_have_left() -> None:
    """A client that still waits for its disconnection must get the decisions of the app's backend."""
    hooked = app_config(
        authorize=(Authorize(url="http://a/", on=frozenset({"subscribe"})),), webhooks=(Webhook(url="http://w/"),)
    )
    changing = Changing(hooked, OTHER)
    changing.apply(OTHER)
    await turns()
    assert changing.configured[0].authorize == hooked.authorize
    for _ in range(FORGET_SECONDS + 2):
        changing.changes.tick()
        await turns()
    assert (changing.configured[-1].authorize, changing.configured[-1].webhooks) == ((), ())


async def test_an_app_that_comes_back_soon_is_the_same_app(changing: Changing) -> None:
    app = changing.world.app
    changing.apply(OTHER)
    await turns()
    changing.changes.tick()
    await turns()
    changing.apply(app_config(), OTHER)
    await turns()
    assert changing.world.node.app(app_config()) is app
    for _ in range(FORGET_SECONDS + 2):
        changing.changes.tick()
        await turns()
    assert changing.world.node.used[APP] is app


async def test_an_app_whose_change_failed_is_changed_at_the_next_reload(changing: Changing) -> None:
    def fail(config: AppConfig) -> None:
        if config.name == "bad":
            raise KeyError

    changing.world.node.on_configured.append(fail)
    with pytest.raises(KeyError):
        changing.apply(app_config(name="bad"), app_config(id="other", key="other-key", name="new"))
    assert [app.id for app in changing.configured] == [APP, "other"]
    assert changing.apply(app_config(), app_config(id="other", key="other-key", name="new")) == [APP]
    assert changing.apply(app_config(), app_config(id="other", key="other-key", name="new")) == []


async def test_a_disabled_app_is_not_forgotten(changing: Changing) -> None:
    changing.apply(app_config(enable=False), OTHER)
    await turns()
    for _ in range(FORGET_SECONDS + 2):
        changing.changes.tick()
        await turns()
    assert APP in changing.world.node.used


async def test_a_changed_limit_of_client_events_applies_to_connected_clients(changing: Changing) -> None:
    session, outlet = changing.world.session(push=None)
    session.handle(Subscribe("presence-c", *_signed(session)))

    def publish() -> Any:
        session.handle(Publish("presence-c", "client-e", b"1"))
        last = outlet.replies[-1] if outlet.replies else None
        return last.code if isinstance(last, Failure) else None

    changing.apply(app_config(limits={"client_events": 1}), OTHER)
    assert [publish(), publish()] == [None, 429]
    changing.apply(app_config(limits={"client_events": 3}), OTHER)
    outlet.replies.clear()
    assert [publish() for _ in range(4)] == [None, None, None, 429]


def _signed(session: Any) -> tuple[str, str]:
    data = '{"user_id":"1"}'
    return token(session, "presence-c", data), data
