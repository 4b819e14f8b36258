"""Whether all workers have the same apps."""

from typing import Any

from push1st.config.model import AppConfig, Config, Webhook
from push1st.console.sameness import MAX_NAMED, SETTLED_SECONDS, AppsMark, OwnApps, groups
from push1st.limits import Limits
from tests.support.loop import Clock


def app(id: str, **keys: Any) -> AppConfig:
    return AppConfig(id=id, key=f"{id}-key", secret=f"{id}-secret", **keys)


def fingerprint(*apps: AppConfig, **keys: Any) -> bytes:
    config = Config(apps=apps, **keys)
    return OwnApps(lambda: config, Clock()).mark().fingerprint


def test_fingerprint_depends_on_each_setting_of_an_app_and_on_nothing_else():
    hook = Webhook(url="https://example.com/", events=("channel_occupied",))
    first = fingerprint(app("a"), app("b", webhooks=(hook,)))
    assert first == fingerprint(app("b", webhooks=(hook,)), app("a"), folder="/elsewhere", broker="redis://other")
    others = [
        fingerprint(app("a")),
        fingerprint(app("a"), app("b")),
        fingerprint(app("a"), app("b", webhooks=(hook,), enable=False)),
        fingerprint(app("a", older_secrets=("old",)), app("b", webhooks=(hook,))),
    ]
    assert len({first, *others}) == 5


def test_fingerprint_does_not_depend_on_the_payload_that_each_server_sets():
    assert fingerprint(app("a", limits=Limits(payload=200_000))) == fingerprint(app("a"))
    assert fingerprint(app("a", limits=Limits(connections=5))) != fingerprint(app("a"))


def test_age_begins_with_each_configuration():
    clock, configs = Clock(), [Config(apps=(app("a"),))]
    own = OwnApps(lambda: configs[-1], clock)
    clock.advance(10)
    first = own.mark()
    configs.append(Config(apps=(app("b"),)))
    own.look()
    clock.advance(3)
    second = own.mark()
    assert (first.age, second.age) == (10, 3)
    assert first.fingerprint != second.fingerprint


def test_workers_are_grouped_by_their_apps_when_no_configuration_is_new():
    one, other = AppsMark(b"one", SETTLED_SECONDS), AppsMark(b"other", SETTLED_SECONDS)
    assert groups([("a:0", one), ("a:1", one)]) == []
    assert groups([("a:0", one), ("b:0", other), ("b:1", other)]) == [["b:0", "b:1"], ["a:0"]]
    assert groups([("a:0", one), ("b:0", AppsMark(b"other", SETTLED_SECONDS - 1))]) == []
    many = groups([(f"a:{number}", one) for number in range(MAX_NAMED + 1)] + [("b:0", other)])
    assert many == [[f"a:{number}" for number in range(MAX_NAMED)] + ["…"], ["b:0"]]
