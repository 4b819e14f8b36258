"""The configuration as typed, frozen structs, with the rules that need no file: the demo, and useless configurations.

This module reads no YAML, files or environment variables: `config.load` reads these and makes the structs. Names and defaults are
from the Push1st API, section 9. A parser raises a ValueError that describes the allowed values, and `readers` adds the value's
place to this error. The `repr` of a struct shows `…` in place of a key, a secret, or a URL that may contain a password.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec

from push1st.channels import type_names
from push1st.config.addresses import Listen, Networks
from push1st.config.history import HistoryBounds, HistorySection, Resume
from push1st.config.mqtt import Mqtt
from push1st.limits import Limits
from push1st.printable import readable

MESSAGE_PROTOCOLS = ("pusher", "websocket")
"""the protocols whose clients send messages over WebSockets, each with a `ProtocolConfig`"""
PROTOCOLS = (*MESSAGE_PROTOCOLS, "mqtt", "sse")
SERVED = ("pusher", "websocket", "sse")
"""the protocols on the addresses of `server.listen` and `api.listen`, which are all enabled by default"""
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
"""The minimum number of bytes of a secret for HMAC-SHA256. A shorter secret makes the signature weaker (RFC 7518 §3.2)."""

MAX_SECRETS = 3
"""the maximum number of secrets of an app: each check of a signature compares all of them"""

EMBEDDED = "embedded://"
"""if `broker` begins with this text, the server starts an engine; the path of the engine's executable follows the text"""


class Ssl(msgspec.Struct, frozen=True):
    """The TLS of a listener. `key` and `cert` are absolute paths; if both paths are "", the certificate is self-signed."""

    enable: bool = False
    key: str = ""
    cert: str = ""


class _Discreet(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose `repr` hides the fields in `hidden`. `__rich_repr__` hides the same fields from the library `rich`."""

    hidden: ClassVar[frozenset[str]] = frozenset()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        pairs = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, "…" if value and name in self.hidden else value) for name, value in pairs]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class ProtocolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a protocol whose clients send messages over WebSockets.

    path: the beginning of the protocol's paths, with a slash at both ends.
    activity_timeout: seconds without data from a client after which the server sends a ping.
    whitelist: addresses that may connect; empty: all addresses.
    push: types of channels to which clients may publish; `private` includes `protected`.
    max_payload: maximum number of bytes of one client message.
    """

    path: str
    activity_timeout: int = 3600
    whitelist: Networks = Networks()
    push: frozenset[str] = frozenset({"public", "private", "presence"})
    max_payload: int = 65_400


class SseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of server-sent events.

    path: the beginning of the paths of event streams, with a slash at both ends.
    whitelist: addresses that may connect; empty: all addresses.
    """

    path: str = "/sse/"
    whitelist: Networks = Networks()


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The listeners for clients, and the settings of their connections.

    proto: the enabled protocols.
    listen: the addresses for clients; empty: the server listens on the addresses of the API only.
    app_path: the part of a client's path before the app's key, with a slash at both ends.
    drain: the seconds within which a stopping server disconnects all clients.
    proxies: addresses of proxies whose `X-Forwarded-For` the server accepts.
    outbox: the maximum number of bytes that may wait for a slow connection, before the server closes the connection.
    max_payload: the maximum number of bytes of one client message, if the protocol has no limit of its own.
    history: the bounds of the history of all apps in the memory broker.
    """

    proto: frozenset[str] = frozenset(SERVED)
    listen: tuple[Listen, ...] = (Listen("tcp", port=6001),)
    ssl: Ssl = Ssl()
    app_path: str = "/app/"
    pusher: ProtocolConfig = ProtocolConfig(path="/pusher/", activity_timeout=120)
    websocket: ProtocolConfig = ProtocolConfig(path="/ws/")
    mqtt: Mqtt = Mqtt()
    sse: SseConfig = SseConfig()
    drain: int = 10
    workers: int | Literal["auto"] = 1
    proxies: Networks = Networks()
    outbox: int = 1_048_576
    max_payload: int = 65_400
    history: HistoryBounds = HistoryBounds()

    @property
    def mqtt_listen(self) -> tuple[Listen, ...]:
        """The addresses for MQTT without WebSockets; empty if `proto` does not enable MQTT."""
        return self.mqtt.listen if "mqtt" in self.proto else ()

    def bases(self, protocol: Literal["pusher", "websocket", "sse", "mqtt"]) -> tuple[str, ...]:
        """Returns the beginnings of a protocol's paths, up to the app's key; an empty tuple for a disabled protocol.

        A path of MQTT needs no key of an app, so the beginning of these paths has no slash at its end.
        """
        if protocol not in self.proto:
            return ()
        if protocol == "mqtt":
            return (self.mqtt.path.rstrip("/"),)
        if protocol == "pusher":
            return self.pusher.path.rstrip("/") + self.app_path, self.app_path
        own = self.sse.path if protocol == "sse" else self.websocket.path
        return (own.rstrip("/") + self.app_path,)


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP API.

    keep_alive_timeout: seconds that a connection may be idle.
    whitelist: addresses that may connect; empty: all addresses.
    trust: addresses whose unsigned requests the server accepts; empty: no addresses (Push1st API, section 6).
    """

    listen: tuple[Listen, ...] = (Listen("tcp", port=6002),)
    ssl: Ssl = Ssl()
    path: str = "/apps/"
    keep_alive_timeout: int = 10
    whitelist: Networks = Networks()
    trust: Networks = Networks.parse(("127.0.0.0/8", "::1", "unix"))


class Hook(_Discreet, frozen=True, kw_only=True):
    """The hook of an app in the format of the original Push1st; `Webhook` has the format of Pusher.

    trigger: the events that the endpoints receive.
    endpoint: the URLs of the endpoints.
    sign: whether requests contain the app's key and a signature.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"endpoint"})

    trigger: frozenset[str] = frozenset()
    endpoint: tuple[str, ...] = ()
    sign: bool = False


class Webhook(_Discreet, frozen=True, kw_only=True):
    """A webhook of an app.

    events: the events that the webhook receives; empty: all events of the webhook's format.
    filter: prefixes or patterns of channel names; `*` in a pattern stands for any text. An empty filter means all channels.
    headers: additional HTTP headers of each request.
    timeout: the maximum duration of a delivery in seconds.
    batch: the maximum number of events in a delivery.
    concurrency: the maximum number of simultaneous deliveries. 0 stands for the default: 1 for `py:` and `lua:`, 10 for HTTP.
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
    """An endpoint that decides whether clients of an app may connect, subscribe or publish.

    on: the operations for which the server requests a decision.
    filter: prefixes or patterns of the names of channels, as for a webhook. An empty filter means all channels.
    headers: additional HTTP headers of each request.
    timeout: seconds in which the endpoint must reply; without a reply in this time, the server rejects the operation.
    cache: seconds for which the server reuses a reply; 0: the server does not reuse replies.
    concurrency: the maximum number of processes that run a `py:` function at the same time.
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
    """Settings of all hooks.

    events, bytes: the maximum number of events and of bytes in an endpoint's queue. If a queue is full, the server drops events.
    folder: the folder for queued events while the server is stopped, and for lost events (`dead-letters.jsonl`). Without a
    folder, the server only counts the lost events.
    """

    events: int = 100_000
    bytes: int = 67_108_864
    folder: str = ""


class AppConfig(_Discreet, frozen=True, kw_only=True):
    """The settings of an app.

    channels: the types of channels that clients may use. Without a secret, an app has public channels only.
    secret: the secret that signs and verifies; "" if the app has no secret.
    older_secrets: further secrets, which only verify, while the operator rotates the secret.
    origins: the origins of web pages that may connect; empty: all origins.
    client_messages: whether clients may publish; by default they may not, as with Pusher.
    statistic: a setting of the original Push1st, without effect in this server.
    history: which channels keep a history; the first section whose filter fits a channel applies. Without sections, no channel
    keeps a history.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"secret", "older_secrets"})

    id: str
    key: str
    secret: str
    older_secrets: tuple[str, ...] = ()
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
    history: tuple[HistorySection, ...] = ()
    resume: Resume = Resume()

    @property
    def secrets(self) -> tuple[str, ...]:
        """All secrets: the first signs, and each of them verifies. Empty if the app has no secret."""
        return (self.secret, *self.older_secrets) if self.secret else ()


class MetricsConfig(_Discreet, frozen=True, kw_only=True):
    """The metrics, and the access to them for programs that may not call the API.

    apps: the maximum number of apps with metrics of their own.
    listen: the addresses that serve `/metrics`, `/health` and `/ready`, and nothing else.
    token: the bearer token with which every caller may read the metrics; "" for none.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"token"})

    apps: int = 200
    listen: tuple[Listen, ...] = ()
    token: str = ""


class ConsoleConfig(_Discreet, frozen=True, kw_only=True):
    """The console: web pages for the operators of the server.

    password: the password of the operators, or its hash as `push1st console password` prints it; "" switches the console off.
    origin: the origin of the console in browsers, if a proxy forwards it; "" for the address of the listener.
    proxies: addresses of proxies whose `X-Forwarded-For` the console accepts.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"password"})

    password: str = ""
    listen: tuple[Listen, ...] = (Listen("tcp", "127.0.0.1", 6003),)
    ssl: Ssl = Ssl()
    origin: str = ""
    proxies: Networks = Networks()

    @property
    def listens(self) -> tuple[Listen, ...]:
        """The addresses of the console; empty if it has no password."""
        return self.listen if self.password else ()


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the log."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Discreet, frozen=True, kw_only=True):
    """The whole configuration.

    broker: `memory`, or a URL.
    folder: the folder at which relative paths start.
    files: the files that contain the configuration.
    warnings: a line for each setting that is valid, but has no effect or is probably a mistake.
    places: the places of the keys that files or the environment set; see `settings`.
    demo: whether the configuration is the demo (see the function `demo`).
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"broker"})

    server: ServerConfig = ServerConfig()
    api: ApiConfig = ApiConfig()
    apps: tuple[AppConfig, ...] = ()
    broker: str = "memory"
    log: LogConfig = LogConfig()
    hooks: HooksConfig = HooksConfig()
    metrics: MetricsConfig = MetricsConfig()
    console: ConsoleConfig = ConsoleConfig()
    folder: str = ""
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    demo: bool = False

    @property
    def has_broker(self) -> bool:
        """Whether the broker is a Redis or Valkey server of the operator. Otherwise, several workers share an embedded engine."""
        return self.broker != "memory" and not self.broker.startswith(EMBEDDED)


DEMO_SECRET = "secret"  # noqa: S105 - public on purpose, so the demo listens on the loopback interface only


def demo() -> Config:
    """Returns the configuration of the demo, for a server without a configuration. Only this machine can connect to the demo.

    The demo has the app of the documentation's examples. A server with a configuration file does not get this app.
    """
    app = AppConfig(id="app-test", key="app-key", secret=DEMO_SECRET, name="Demo", client_messages=True)
    return Config(
        server=ServerConfig(listen=(Listen("tcp", "127.0.0.1", 6001),)),
        api=ApiConfig(listen=(Listen("tcp", "127.0.0.1", 6002),)),
        apps=(app,),
        demo=True,
    )


def all_disabled(config: Config) -> bool:
    """Returns whether there are apps, and all of them are disabled. This is no mistake: somebody has disabled each of them."""
    return bool(config.apps) and not any(app.enable for app in config.apps)


def unserved(config: Config) -> str:
    """Returns the reason why the server could serve no client, with advice; "" if the server can serve clients."""
    enabled = [app for app in config.apps if app.enable]
    if not config.apps:
        return "no app is configured, so every client will be refused: credentials must name a file that exists and has an app"
    if not enabled:
        return "every app is disabled, so every client will be refused: remove enable: false from one"
    if not any(app.channels for app in enabled):
        return "no enabled app has channels: give an app a secret, or put public into its channels"
    if not config.server.proto:
        return f"server.proto has none of {', '.join(PROTOCOLS)}, so every client will be refused"
    if not config.server.listen and not config.api.listen and not config.server.mqtt_listen:
        return "server.listen and api.listen are both switched off, so nobody can connect"
    return ""


SHOWN_IDS = 5
"""the maximum number of apps that a line names"""

# The limits of the original Push1st, which limits only the size of an event. The number 0 stands for no limit.
_PUSH1ST = {"payload": 65_400} | dict.fromkeys(
    ("members", "connections", "subscriptions", "channels_per_event", "client_events", "publishes", "reads"), 0
)


def strictness(config: Config) -> list[str]:
    """Returns lines about enabled apps with lower limits than in the original Push1st; apps with the same limits share a line."""
    alike: dict[str, list[str]] = {}
    for app in config.apps:
        stricter = [
            f"{field.replace('_', '-')} {_limit(field, ours)} instead of {_limit(field, theirs)}"
            for field, theirs in _PUSH1ST.items()
            if (ours := getattr(app.limits, field)) and (ours < theirs or not theirs)
        ]
        if stricter and app.enable:
            alike.setdefault(", ".join(stricter), []).append(app.id)
    here = "only if you move from the original Push1st, the server in C++: these limits are lower here"
    return [f"{some(ids)}: {here}: {limits}; raise them in limits of the app" for limits, ids in alike.items()]


def _limit(field: str, value: int) -> str:
    return "unlimited" if not value else readable(value) if field == "payload" else f"{value:,}"


def weak_secrets(config: Config) -> list[str]:
    """Returns a line about the enabled apps with a secret that is too short; nothing for the demo, whose secret is known."""
    weak = [app.id for app in config.apps if app.enable and any(len(secret.encode()) < SECRET_BYTES for secret in app.secrets)]
    reason = (
        f"the secret is shorter than {SECRET_BYTES} bytes, so attackers who have an access token may guess it, and sign tokens "
        "of their own: set a longer random secret (push1st app rotate)"
    )
    return [f"{some(weak)}: {reason}"] if weak and not config.demo else []


def all_warnings(config: Config) -> tuple[str, ...]:
    """Returns the warnings of the configuration, with that about weak secrets."""
    return *config.warnings, *weak_secrets(config)


def some(ids: Sequence[str]) -> str:
    """Returns the first ids, and the number of the others."""
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS:,} more apps" if len(ids) > SHOWN_IDS else "")
