"""The configuration as typed, frozen structs, with the rules that need no file: addresses, networks, the demo.

It must not know YAML, files or the environment; `config.load` reads those into what is here. Names and defaults are
those of the Push1st API, section 9. Parsers raise ValueError with what is allowed; whoever knows the place adds it.
Where a key, a secret or a URL with a password could be printed, `repr` shows `…` instead.
"""

import ipaddress
import re
from collections.abc import Iterable
from posixpath import join, normpath
from typing import Any, ClassVar, Literal

import msgspec

from push1st.channels import type_names
from push1st.limits import Limits

Net = ipaddress.IPv4Network | ipaddress.IPv6Network
Protocol = Literal["pusher", "websocket", "mqtt"]
PROTOCOLS: tuple[Protocol, ...] = ("pusher", "websocket", "mqtt")
TRIGGERS = ("register", "unregister", "join", "leave", "push")
WEBHOOK_EVENTS = (
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
    "subscription_count",
)
QUESTIONS = ("connect", "subscribe", "publish")

SECRET_BYTES = 32
"""Shorter keys are weaker than the HMAC-SHA256 they are used for (RFC 7518 §3.2)."""

EMBEDDED = "embedded://"
"""`broker`: what several workers of one machine have by themselves, by a server program at the path behind it"""

_LISTEN = "tcp://HOST:PORT (HOST may be *), or unix://PATH"
_TCP = re.compile(r"tcp://(?:\[([^\]]+)\]|([A-Za-z0-9_.-]*|\*)):([0-9]{1,5})/?\Z")
_UNIX = re.compile(r"unix://[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\Z")
_DIGITS_ONLY = re.compile(r"[0-9.]+\Z")
_SOCKET_BYTES = 107  # sun_path is 108 bytes, the last one is zero: unix(7)


class Listen(msgspec.Struct, frozen=True):
    """Where to listen. tcp: host ("" is all interfaces) and port; unix: path. `str` gives what `parse` takes."""

    scheme: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Listen":
        """A trailing slash is tolerated for tcp. `unix://a/b` is a relative path, `unix:///a/b` an absolute one."""
        if _UNIX.match(text):
            path = normpath(text.removeprefix("unix://"))
            if text.endswith("/") or path.rpartition("/")[2] in ("", ".", ".."):
                raise ValueError(_LISTEN)
            return cls("unix", path="/" + path.lstrip("/") if path.startswith("/") else path)._short_enough()
        match = _TCP.match(text)
        if not match:
            raise ValueError(_LISTEN)
        if int(match[3]) > 65535:
            raise ValueError("a port from 0 to 65535")
        try:
            host = str(ipaddress.IPv6Address(match[1])) if match[1] else match[2]
            if _DIGITS_ONLY.match(host):
                ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(_LISTEN) from None
        return cls("tcp", "" if host == "*" else host, int(match[3]))

    def under(self, folder: str) -> "Listen":
        """The same with a relative path made to start at `folder`."""
        return Listen("unix", path=normpath(join(folder, self.path)))._short_enough() if self.scheme == "unix" else self

    def _short_enough(self) -> "Listen":
        if len(self.path.encode()) > _SOCKET_BYTES:
            raise ValueError(f"a path of at most {_SOCKET_BYTES} bytes for a Unix socket")
        return self

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host or '*'}:{self.port}"


class Ssl(msgspec.Struct, frozen=True):
    """TLS of a listener. key, cert: absolute paths, or both "": a self-signed certificate is made at start."""

    enable: bool = False
    key: str = ""
    cert: str = ""


def network(text: str) -> Net:
    """One address or network. IPv4-mapped IPv6 (::ffff:10.0.0.0/104) is the IPv4 network it means."""
    try:
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("an IP address, or a network such as 10.0.0.0/8 or fd00::/8") from None
    if "/" in text and net.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"a network whose address has no bits after the prefix: {net}")
    if net.version == 6 and net.prefixlen >= 96 and net.network_address.ipv4_mapped is not None:
        return ipaddress.IPv4Network((net.network_address.ipv4_mapped, net.prefixlen - 96))
    return net


class Networks:
    """A set of networks, and perhaps the peers of Unix sockets.

    False when it holds nothing. What that means is the caller's rule: an empty `whitelist` lets everyone in, an empty
    `trust` or `proxies` trusts nobody.
    """

    __slots__ = ("_known", "nets", "unix")
    MAX_KNOWN = 4096

    def __init__(self, nets: Iterable[Net] = (), unix: bool = False) -> None:
        self.nets = tuple(nets)
        self.unix = unix
        self._known: dict[str, bool] = {}

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Networks":
        """Addresses, networks, and the word `unix`."""
        words = tuple(words)
        return cls((network(word) for word in words if word != "unix"), "unix" in words)

    def contains(self, ip: str) -> bool:
        """Whether `ip` is in it; "" is the peer of a Unix socket. ::ffff:1.2.3.4 is 1.2.3.4; what is no address is in none."""
        if len(ip) > 64:  # no address is that long, but a forwarded header may be
            return False
        known = self._known.get(ip)
        if known is None:
            if len(self._known) >= self.MAX_KNOWN:
                self._known.clear()
            known = self._known[ip] = self._look(ip)
        return known

    def _look(self, ip: str) -> bool:
        if not ip:
            return self.unix
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])  # fe80::1%eth0
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in net for net in self.nets)

    def __bool__(self) -> bool:
        return self.unix or bool(self.nets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and (self.nets, self.unix) == (other.nets, other.unix)

    def __hash__(self) -> int:
        return hash((self.nets, self.unix))

    def __str__(self) -> str:
        return ", ".join([*map(str, self.nets), *(["unix"] if self.unix else [])])

    def __repr__(self) -> str:
        return f"Networks({self})"


class _Discreet(msgspec.Struct, frozen=True, kw_only=True):
    """Fields named in `hidden` are not shown by `repr`, nor by rich, which does not ask it."""

    hidden: ClassVar[frozenset[str]] = frozenset()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        pairs = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, "…" if value and name in self.hidden else value) for name, value in pairs]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class ProtocolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One protocol of `server`.

    path: with a slash at both ends. activity_timeout: seconds. whitelist: who may connect, empty: everyone.
    push: types of channels clients may publish to; private covers protected. max_payload: bytes of one client message.
    """

    path: str
    activity_timeout: int = 3600
    whitelist: Networks = Networks()
    push: frozenset[str] = frozenset({"public", "private", "presence"})
    max_payload: int = 65_400


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What clients connect to.

    proto: the protocols that are on. listen: empty: off. app_path: with a slash at both ends. drain: seconds in which
    clients are told to reconnect at a stop. proxies: whose X-Forwarded-For is believed. outbox: bytes a
    connection may be behind. max_payload: bytes of one client message, where the protocol does not say otherwise.
    """

    proto: frozenset[str] = frozenset({"pusher", "websocket"})
    listen: tuple[Listen, ...] = (Listen("tcp", port=6001),)
    ssl: Ssl = Ssl()
    app_path: str = "/app/"
    pusher: ProtocolConfig = ProtocolConfig(path="/pusher/", activity_timeout=120)
    websocket: ProtocolConfig = ProtocolConfig(path="/ws/")
    mqtt: ProtocolConfig = ProtocolConfig(path="/mqtt/")
    drain: int = 10
    workers: int | Literal["auto"] = 1
    proxies: Networks = Networks()
    outbox: int = 1_048_576
    max_payload: int = 65_400

    def bases(self, protocol: Literal["pusher", "websocket"]) -> tuple[str, ...]:
        """What the paths of a protocol's WebSockets begin with, up to the key; nothing where it is off."""
        if protocol not in self.proto:
            return ()
        if protocol == "pusher":
            return self.pusher.path.rstrip("/") + self.app_path, self.app_path
        return (self.websocket.path.rstrip("/") + self.app_path,)


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP API.

    keep_alive_timeout: seconds. whitelist: who may connect, empty: everyone. trust: whose unsigned calls are
    accepted, empty: nobody's (Push1st API, section 6).
    """

    listen: tuple[Listen, ...] = (Listen("tcp", port=6002),)
    ssl: Ssl = Ssl()
    path: str = "/apps/"
    keep_alive_timeout: int = 10
    whitelist: Networks = Networks()
    trust: Networks = Networks.parse(("127.0.0.0/8", "::1", "unix"))


class Hook(_Discreet, frozen=True, kw_only=True):
    """Push1st's hook of an app.

    trigger: what endpoints are told of. endpoint: where. sign: requests carry the app's key and a signature.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"endpoint"})

    trigger: frozenset[str] = frozenset()
    endpoint: tuple[str, ...] = ()
    sign: bool = False


class Webhook(_Discreet, frozen=True, kw_only=True):
    """A webhook of an app.

    events: which it is told of; empty: all of its format. filter: channels it is told of, by prefix, or by a pattern in
    which `*` stands for anything; empty: all. headers: of each request. timeout: seconds a delivery may take. batch: events
    a delivery may have. concurrency: deliveries at once, each of other channels; 0: 10, and 1 of `py:` and `lua:`.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"url", "headers"})

    url: str
    format: Literal["pusher", "push1st"] = "pusher"
    events: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    timeout: int = 5
    batch: int = 1
    concurrency: int = 0


class Authorize(_Discreet, frozen=True, kw_only=True):
    """Who an app has a say through.

    on: what it is asked about. filter: channels it is asked about, as of a webhook; empty: all. headers: of each request.
    timeout: seconds it has to answer; then the answer is no. cache: seconds an answer is kept; 0: not at all.
    concurrency: processes of a `py:` function.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"url", "headers"})

    url: str
    on: frozenset[str] = frozenset()
    filter: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    timeout: int = 3
    cache: int = 0
    concurrency: int = 1


class HooksConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What all endpoints of hooks share.

    events, bytes: that may wait for one endpoint; what comes then is dropped. folder: where the rest of a queue is saved
    at a stop, and what was given up is kept (`dead-letters.jsonl`); without one both are lost, and counted.
    """

    events: int = 100_000
    bytes: int = 67_108_864
    folder: str = ""


class AppConfig(_Discreet, frozen=True, kw_only=True):
    """One app.

    channels: the types it may use; without a secret only public ones, since nothing can be signed. origins: empty:
    any. client_messages: clients may publish; off unless the configuration says so, as at Pusher (Push1st's files
    always say). statistic: read, without effect.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"secret"})

    id: str
    key: str
    secret: str
    name: str = ""
    enable: bool = True
    channels: frozenset[str] = frozenset(type_names)
    origins: tuple[str, ...] = ()
    limits: Limits = Limits()
    client_messages: bool = False
    subscription_count: bool = False
    authorized_only: bool = False
    statistic: bool = False
    hook: Hook | None = None
    webhooks: tuple[Webhook, ...] = ()
    authorize: tuple[Authorize, ...] = ()


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Discreet, frozen=True, kw_only=True):
    """Everything.

    broker: `memory`, or a URL. folder: where relative paths start. warnings: what loads and does not do what it says.
    files: the files that the configuration was read from. demo: see `demo`.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"broker"})

    server: ServerConfig = ServerConfig()
    api: ApiConfig = ApiConfig()
    apps: tuple[AppConfig, ...] = ()
    broker: str = "memory"
    log: LogConfig = LogConfig()
    hooks: HooksConfig = HooksConfig()
    folder: str = ""
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    demo: bool = False

    @property
    def has_broker(self) -> bool:
        """Whether it is connected to one that was there before; several workers without one are given an engine of their own."""
        return self.broker != "memory" and not self.broker.startswith(EMBEDDED)


DEMO_SECRET = "secret"  # noqa: S105 - public on purpose, hence on the loopback interface only


def demo() -> Config:
    """What runs without a configuration: the app of the documentation, for this machine only. No file ever adds it."""
    app = AppConfig(id="app-test", key="app-key", secret=DEMO_SECRET, name="Demo", client_messages=True)
    return Config(
        server=ServerConfig(listen=(Listen("tcp", "127.0.0.1", 6001),)),
        api=ApiConfig(listen=(Listen("tcp", "127.0.0.1", 6002),)),
        apps=(app,),
        demo=True,
    )


def unserved(config: Config) -> str:
    """Returns why no client can be served, and what to change; "" if one can."""
    enabled = [app for app in config.apps if app.enable]
    if not config.apps:
        return "no app is configured, so every client will be refused: credentials must name a file that exists and has an app"
    if not enabled:
        return "every app is disabled, so every client will be refused: remove enable: false from one"
    if not any(app.channels for app in enabled):
        return "no enabled app has channels: give an app a secret, or put public into its channels"
    if not config.server.proto & {"pusher", "websocket"}:
        return "server.proto has neither pusher nor websocket, so every client will be refused"
    if not config.server.listen and not config.api.listen:
        return "server.listen and api.listen are both switched off, so nobody can connect"
    return ""


# Push1st has the limit on size only; 0: none.
_PUSH1ST = {"payload": 65_400} | dict.fromkeys(
    ("members", "connections", "subscriptions", "channels_per_event", "client_events", "publishes", "reads"), 0
)


def strictness(config: Config) -> list[str]:
    """Where enabled apps are limited more than Push1st would, a line for all that are alike; and whose secret is short."""
    alike: dict[str, list[str]] = {}
    lines = []
    for app in config.apps:
        if not app.enable:
            continue
        stricter = [
            f"{field.replace('_', '-')} {ours} ({theirs or 'unlimited'})"
            for field, theirs in _PUSH1ST.items()
            if (ours := getattr(app.limits, field)) and (ours < theirs or not theirs)
        ]
        if stricter:
            alike.setdefault(", ".join(stricter), []).append(app.id)
        if app.secret and len(app.secret.encode()) < SECRET_BYTES and not config.demo:
            lines.append(f"{app.id}: the secret is shorter than {SECRET_BYTES} bytes: access tokens signed with it are weak")
    return [
        f"{', '.join(ids)}: limits (in brackets those of the original Push1st): {limits}" for limits, ids in alike.items()
    ] + lines
