"""Each way to subscribe with MQTT, with rights of each kind: a client without the right gets nothing, a client with it gets all.

The stranger and the holder of the right subscribe in the same way, and are members of the same groups.
"""

import contextlib
import ssl
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from tests.support.certificates import Authority
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.signing import access_token

PREFIXES = ("private-", "presence-", "protected-", "private-encrypted-", "private-cache-", "presence-cache-")
SECRETS = (*(f"{prefix}orders/1" for prefix in PREFIXES), "private-orders", "private-orders/1/2")
CLIENT_EVENTS = ("private-orders/1", "presence-orders/1")
"""topics of the secrets to which a Pusher client publishes too"""
PATTERNS = tuple(f"{prefix}orders*" for prefix in PREFIXES)
FIRST_LEVELS = tuple(f"{prefix}orders" for prefix in PREFIXES)
END = "end/1"
MODULE = """
from pathlib import Path
from push1st.hooks.events import Allow, Connecting, User

def decide(question):
    if isinstance(question, Connecting):
        return Allow(User(question.username)) if question.protocol == "mqtt" else True
    if question.user_id is None:  # a Pusher client, which has signed the subscription
        return True
    return (Path(__file__).parent / f"{question.user_id}.right").exists() and "orders" in question.channel
"""

EXACT = SECRETS
WILDCARD = tuple(f"{first}/{last}" for first in FIRST_LEVELS for last in ("+", "#", "+/2"))
ALL = ("#", "+", "+/1", "+/#", "+/+")
"""filters about which no backend decides"""


def of_group(filters: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"$share/g/{one}" for one in filters)


WAYS = {
    "exact": EXACT,
    "wildcard": WILDCARD,
    "wildcard in the first level": ALL,
    "shared": of_group(EXACT),
    "shared wildcard": of_group(WILDCARD),
    "shared wildcard in the first level": of_group(ALL),
    "overlapping": (*EXACT, *WILDCARD, *ALL, *of_group(EXACT), *of_group(WILDCARD), *of_group(ALL)),
}
KINDS = ("token", "backend", "certificate", "none", "other app")
NUMBERS = count()


class Site(NamedTuple):
    """port, tls_port: the ports of the addresses without and with TLS. folder: the folder of the backend."""

    server: ServerProcess
    port: int
    tls_port: int
    folder: Path
    authority: Authority

    def context(self, name: str) -> ssl.SSLContext:
        """Returns the TLS context of a client whose certificate has a common name."""
        made = ssl.create_default_context(cafile=str(self.authority.certificate))
        made.verify_flags &= ~ssl.VERIFY_X509_STRICT
        made.load_cert_chain(*self.authority.issue(name))
        return made


class Person(NamedTuple):
    """A client. app: its app. key: its user name. name: its user, and its client id. channels: the channels of its token; None:
    it has no token. has_certificate: whether it connects with TLS and a certificate.
    """

    app: str
    key: str
    name: str
    channels: tuple[str, ...] | None = None
    has_certificate: bool = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "leaking.py").write_text(MODULE)
    authority = Authority(folder)
    cert, key = authority.issue("127.0.0.1")
    port, tls_port = free_ports(2)
    mqtt = {
        "listen": [f"tcp://127.0.0.1:{port}", f"tls://127.0.0.1:{tls_port}"],
        "ssl": {"cert": str(cert), "key": str(key), "ca": str(authority.certificate)},
        "push": ["public", "private", "presence", "protected"],
        "publishes": 0,
    }
    limits = {"subscriptions": 0}
    decided = {"url": "py://leaking:decide", "filter": ["private-", "presence-", "protected-"]}
    apps = {
        "app-test": merged(APP, {"limits": limits}),
        "app-other": merged(APP, {"key": "other", "limits": limits}),
        "app-backend": merged(
            APP, {"key": "backend", "limits": limits, "authorize": {**decided, "on": ["connect", "subscribe"]}}
        ),
        "app-certificate": merged(APP, {"key": "certificate", "limits": limits, "authorize": {**decided, "on": ["subscribe"]}}),
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(folder))
        with running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}, apps=apps) as server:
            yield Site(server, port, tls_port, folder, authority)


def people(site: Site, kind: str) -> tuple[Person, Person]:
    """Returns a stranger and the holder of the right to the secrets of an app."""
    number = next(NUMBERS)
    holder, stranger = f"holder-{number}", f"stranger-{number}"
    grant(site, holder)
    match kind:
        case "token":
            others = ("private-order", "private-orders.10", "presence-mine*", "private-*x", "private-orders.1.")
            return Person("app-test", "app-key", stranger, others), Person("app-test", "app-key", holder, PATTERNS)
        case "none":
            return Person("app-test", "app-key", stranger), Person("app-test", "app-key", holder, PATTERNS)
        case "other app":
            return Person("app-other", "other", stranger, ("*",)), Person("app-test", "app-key", holder, PATTERNS)
        case "backend":
            return tuple(Person("app-backend", f"backend:{name}", name) for name in (stranger, holder))  # type: ignore[return-value]
        case _:
            return tuple(  # type: ignore[return-value]
                Person("app-certificate", "certificate", name, has_certificate=True) for name in (stranger, holder)
            )


def grant(site: Site, name: str) -> None:
    """Lets the backend allow the secrets to a user."""
    (site.folder / f"{name}.right").touch()


def client_of(site: Site, person: Person, version: Any = V5, **more: Any) -> Any:
    """Opens the connection of a client."""
    password = None
    if person.channels is not None:
        claims = {"app": person.app, "origin": "*", "channel": list(person.channels), "sub": person.name}
        password = access_token(claims)
    tls = site.context(person.name) if person.has_certificate else None
    port = site.tls_port if tls else site.port
    return paho_client(port, version, person.name, person.key, password, tls=tls, **more)


class Publishers:
    """Publishes to all secrets of an app with the API, and with Pusher and MQTT clients."""

    def __init__(self, site: Site, app: str, pusher: PusherSocket, mqtt: PahoClient) -> None:
        self._server = site.server
        self._app = app
        self._pusher = pusher
        self._mqtt = mqtt

    def event(self, topic: str, data: str, app: str = "") -> None:
        body = {"name": "e", "channels": [topic.replace("/", ".")], "data": data}
        assert self._server.post(f"/apps/{app or self._app}/events", body).status == 200

    def publish(self, round: str = "") -> set[tuple[str, bytes]]:
        """Publishes; returns the topics and payloads. round: the end of each payload."""
        sent = []
        for topic in SECRETS:
            self.event(topic, f"api{round}")
            sent.append((topic, f"api{round}"))
            if "encrypted" not in topic:
                self._mqtt.publish(topic, f"mqtt{round}", qos=1)
                sent.append((topic, f"mqtt{round}"))
        self._mqtt.until_acknowledged()
        for topic in CLIENT_EVENTS:
            self._pusher.send("client-e", f"pusher{round}", topic.replace("/", "."))
            sent.append((topic, f"pusher{round}"))
        self._pusher.round_trip()
        return {(topic, payload.encode()) for topic, payload in sent}

    def retain(self, payload: bytes) -> set[tuple[str, bytes]]:
        """Retains a message on each topic to which MQTT clients may publish, then on the topic of the end."""
        topics = [topic for topic in SECRETS if "encrypted" not in topic]
        for topic in (*topics, END):
            self._mqtt.publish(topic, payload, qos=1, retain=True)
        self._mqtt.until_acknowledged()
        return {(topic, payload) for topic in topics}


@contextlib.contextmanager
def publishers(site: Site, app: str) -> Iterator[Publishers]:
    """Opens the connections of clients that may publish to all secrets of an app."""
    name = f"publisher-{next(NUMBERS)}"
    grant(site, name)
    key = {"app-test": "app-key", "app-other": "other", "app-backend": "backend", "app-certificate": "certificate"}[app]
    person = Person(app, key if key != "backend" else f"backend:{name}", name, ("*",))
    if app == "app-certificate":
        person = person._replace(has_certificate=True)
    with pusher_socket(site.server, key) as pusher, client_of(site, person) as mqtt:
        for topic in CLIENT_EVENTS:
            pusher.subscribe(topic.replace("/", "."), {"user_id": name} if topic.startswith("presence-") else None)
        yield Publishers(site, app, pusher, mqtt)


def until_end(client: PahoClient) -> set[tuple[str, bytes]]:
    """Returns the topics and payloads of the messages before the message on the topic of the end, without empty messages."""
    found = set()
    while (message := client.expect())[0] != END:
        if message[1]:
            found.add(message)
    return found


def matches(topic: str, way: str) -> bool:
    """Whether the filters of a way to subscribe match a secret."""
    if way.endswith("first level"):
        return True
    return "wildcard" not in way or "/" in topic or topic in FIRST_LEVELS


def readable(kind: str, way: str, sent: set[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
    """Returns the messages that the holder of the right receives."""
    if kind in ("backend", "certificate") and way.endswith("first level"):
        return set()
    return {message for message in sent if matches(message[0], way)}


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_live_messages_reach_only_clients_with_the_right(site: Site, way: str, kind: str, qos: int, version: Any) -> None:
    stranger, holder = people(site, kind)
    with (
        client_of(site, stranger, version) as eve,
        client_of(site, holder, version) as ada,
        publishers(site, holder.app) as publish,
    ):
        for client in (eve, ada):
            client.subscribe(*WAYS[way], qos=qos)
            assert client.subscribe(END, "open/1", qos=qos) == [qos, qos]
        sent = publish.publish()
        for person in (stranger, holder):
            for topic in ("open/1", END):
                publish.event(topic, "public", person.app)
        assert until_end(eve) == {("open/1", b"public")}
        assert until_end(ada) - {("open/1", b"public")} == readable(kind, way, sent)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_retained_messages_reach_only_clients_with_the_right(site: Site, way: str, kind: str, qos: int) -> None:
    stranger, holder = people(site, kind)
    with contextlib.ExitStack() as stack:
        publish = stack.enter_context(publishers(site, holder.app))
        sent = publish.retain(b"retained")
        eve, ada = (stack.enter_context(client_of(site, person)) for person in (stranger, holder))
        for client in (eve, ada):
            client.subscribe(*WAYS[way], qos=qos)
            client.subscribe(END, qos=qos)
        if stranger.app != holder.app:
            publish.event(END, "end", stranger.app)
        assert until_end(eve) == set()
        # The last event of an earlier test is retained on a cache channel that only the API publishes to, and is no secret here.
        found = {message for message in until_end(ada) if message[1] == b"retained"}
        assert found == (set() if way.startswith("shared") else readable(kind, way, sent))
        publish.retain(b"")


def until_absent(site: Site, before: float) -> None:
    """Waits until one more session is absent."""
    wait_until(lambda: absent(site) > before, "the session is absent")


def absent(site: Site) -> float:
    found = [line for line in site.server.get("/metrics").body.decode().splitlines() if 'state="absent"' in line]
    return float(found[0].rpartition(" ")[2])


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("kind", ["token", "backend", "certificate"])
@pytest.mark.parametrize("way", WAYS)
def test_resumed_session_reads_only_what_the_client_may_still_read(site: Site, way: str, kind: str, qos: int, lost: bool) -> None:
    """A client loses its right while it is absent, and gets neither the messages that it missed nor new ones."""
    _, holder = people(site, kind)
    with publishers(site, holder.app) as publish:
        before = absent(site)
        with client_of(site, holder, V311, clean=False) as client:
            client.subscribe(*WAYS[way], qos=qos)
            assert client.subscribe(END) == [0]
        until_absent(site, before)
        missed = publish.publish()
        if lost:
            if kind == "token":
                holder = holder._replace(channels=("private-order", "private-mine*"))
            (site.folder / f"{holder.name}.right").unlink()
        with client_of(site, holder, V311, clean=False) as client:
            assert client.subscribe(END) == [0]  # answered when the session is restored
            sent = publish.publish(" again")
            publish.event(END, "end")
            found = until_end(client)
        if lost:
            assert found == set()
        else:
            kept = {message for message in missed if message[1] != b"pusher"} if qos else set()
            assert found == readable(kind, way, kept | sent)
    with client_of(site, holder, V311):
        pass  # ends the session


@pytest.mark.parametrize("kind", ["token", "backend", "certificate", "none"])
@pytest.mark.parametrize("way", ["shared", "shared wildcard"])
def test_log_of_a_group_reaches_only_members_with_the_right(site: Site, way: str, kind: str) -> None:
    """A stranger joins the group while the holder is absent: it neither gets nor removes the messages of the holder."""
    stranger, holder = people(site, kind)
    before = absent(site)
    with publishers(site, holder.app) as publish:
        with client_of(site, holder, V311, clean=False) as ada:
            ada.subscribe(*WAYS[way], qos=1)
        until_absent(site, before)
        first = publish.publish(" first")
        with client_of(site, stranger, V311, clean=False) as eve:
            eve.subscribe(*WAYS[way], qos=1)
            eve.subscribe(END)
            second = publish.publish(" second")
            publish.event(END, "end")
            assert until_end(eve) == set()
        with client_of(site, holder, V311, clean=False) as ada:
            ada.subscribe(END, qos=1)  # so the end does not overtake messages that wait for the window
            publish.event(END, "end")
            missed = {message for message in first | second if not message[1].startswith(b"pusher")}
            assert until_end(ada) == readable(kind, way, missed)
    for person in (stranger, holder):
        with client_of(site, person, V311):
            pass  # ends the session


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("group", ["", "$share/{}/"])
@pytest.mark.parametrize("filter", ["private-orders/1", "private-orders/+", "private-orders/#"])
def test_messages_in_flight_are_not_sent_again_after_the_right_is_lost(
    site: Site, filter: str, group: str, level: int, qos: int
) -> None:
    name = f"flight-{next(NUMBERS)}"
    filter = group.format(name) + filter

    def fields(*channels: str) -> dict[str, Any]:
        claims = {"app": "app-test", "origin": "*", "channel": list(channels), "sub": name}
        more = {"session_expiry": 60} if level == MQTT_5 else {}
        return {"clean": False, "password": access_token(claims).encode(), **more}

    event = b"\x26\0\5event\0\1e" if level == MQTT_5 else b""
    before = absent(site)
    with publishers(site, "app-test") as publish:
        with connected(site.port, level, name, **fields("private-orders*")) as client:
            client.subscribe(filter, qos)
            publish.event("private-orders/1", "secret")
            # The API publishes with QoS 1.
            client.expect(client.message("private-orders/1", b"secret", 1, 1, properties=event))
        until_absent(site, before)
        with connected(site.port, level, name, **fields("private-orders*")) as client:
            client.expect(client.message("private-orders/1", b"secret", 1, 1, dup=True, properties=event))
        until_absent(site, before)
        with connected(site.port, level, name, **fields("private-other")) as client:
            client.expect_nothing()
            publish.event("private-orders/1", "secret")
            client.expect_nothing()
        until_absent(site, before)
        with connected(site.port, level, name, **fields("private-orders*")) as client:
            client.expect_nothing()  # the subscription has ended with the right


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_events_to_a_user_reach_only_its_own_clients(site: Site, kind: str, qos: int, version: Any) -> None:
    stranger, holder = people(site, kind)
    topic, refused = f"$user/{holder.name}", 0x87 if version == V5 else 0x80
    filters = (topic, *of_group((topic, "$user/+", "$user/#")), "$user/+", "$user/#", "+/+", "#", "$user", f"+/{holder.name}")
    with client_of(site, stranger, version) as eve, client_of(site, holder, version) as ada:
        assert eve.subscribe(*filters, qos=qos)[:4] == [refused] * 4
        assert ada.subscribe(topic, qos=qos) == [qos]
        for client in (eve, ada):
            assert client.subscribe(END, qos=qos) == [qos]
        for app in {stranger.app, holder.app}:
            body: dict[str, Any] = {"name": "e", "channels": [f"#server-to-user-{holder.name}"], "data": "secret"}
            if app == holder.app:
                assert site.server.post(f"/apps/{app}/events", body).status == 200
            assert site.server.post(f"/apps/{app}/events", {"name": "e", "channels": ["end.1"], "data": "end"}).status == 200
        assert until_end(eve) == set()
        assert until_end(ada) == {(topic, b"secret")}


def test_message_of_a_lost_member_waits_if_no_other_member_has_the_right(site: Site) -> None:
    stranger, holder = people(site, "none")
    claims = {"app": "app-test", "origin": "*", "channel": [*PATTERNS], "sub": holder.name}
    fields: dict[str, Any] = {"clean": False, "password": access_token(claims).encode()}
    group, before = "$share/left/private-orders/+", absent(site)
    with publishers(site, "app-test") as publish, client_of(site, stranger, V311) as eve:
        assert eve.subscribe(group, qos=1) == [1]
        with connected(site.port, MQTT_311, holder.name, **fields) as ada:
            ada.subscribe(group, 1)
            publish.event("private-orders/1", "secret")
            ada.expect(ada.message("private-orders/1", b"secret", 1, 1))
        until_absent(site, before)
        with connected(site.port, MQTT_311, holder.name, **fields) as ada:
            ada.expect(ada.message("private-orders/1", b"secret", 1, 1, dup=True))
        eve.subscribe(END)
        publish.event(END, "end")
        assert until_end(eve) == set()
