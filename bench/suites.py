"""The suites of the bench: which servers are measured together, under which loads, and with which goals.

A `Run` is a kind of load, a `Figure` is a row of the table, and a `Goal` is a bound for a figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from servers import CLUSTER_NAMES, HISTORY_NAMES, MQTT_NAMES, NAMES, PAGE_NAMES, STREAM_NAMES

LATENCY_LOAD = 50_000
"""deliveries/s at which latency is measured: about half of what a server does with one publish at a time"""
IDS = 1024
"""publishes that can be told apart at a time, for latency"""
PAGES = 10_000
GROUPS = 100
"""channels on which the pages are distributed; with as many publishes a second, each page receives one event a second"""


@dataclass(frozen=True, slots=True)
class Run:
    """One kind of load.

    options: options of load.c, which win over those of the command line.
    """

    name: str
    mode: str
    options: Mapping[str, int | str] = field(default_factory=dict)
    signed: bool | None = None
    """publish signed, publish unsigned, or (None) as the server prefers: unsigned where it is allowed"""
    many: bool = False
    """one channel for each subscriber, rather than one for all"""
    with_floor: bool = False
    """the bare C loop takes part"""
    groups: int = 1
    """the number of channels, if not `many`; the subscribers are distributed on them"""
    each: int = 1
    """the number of channels that each subscriber subscribes to; the publishes are distributed on them"""
    seconds: float = 0
    """the minimum duration"""
    mqtt_subscribers: bool = False
    mqtt_publishers: bool = False
    qos: int = 0
    """of MQTT publishes and subscriptions"""
    prefix: str = "bench-"
    """of the names of the channels, or of the topics"""
    without: tuple[str, ...] = ()
    """servers that do not take part"""


ONE = Run("one", "publish", {"publishers": 1, "backlog": 1}, with_floor=True)
EIGHT = Run("eight", "publish", {"publishers": 8, "backlog": 64})
UNSIGNED = Run("unsigned", "publish", {"publishers": 16, "backlog": 4096}, signed=False, many=True)
IDLE = Run("idle", "hold")
ALONE_RUNS = (
    ONE,
    EIGHT,
    UNSIGNED,
    Run("signed", "publish", {"publishers": 16, "backlog": 4096}, signed=True, many=True),
    Run("latency", "publish", {"publishers": 16}),
    IDLE,
)
CLUSTER_RUNS = (Run("eight", "publish", {"publishers": 8, "backlog": 64}, signed=True), Run("presence", "presence"))
HISTORY_RUNS = (ONE, replace(EIGHT, seconds=12), UNSIGNED, IDLE)  # 12 s: each page acknowledges at least once
PAGE_RUNS = tuple(
    Run(
        f"acks-{each}",
        "publish",
        {"publishers": 4, "rate": GROUPS, "n": PAGES, "burst": 200},
        groups=GROUPS,
        each=each,
        seconds=20,
    )
    for each in (1, 20)
)
STREAM_RUNS = (ONE, EIGHT, Run("crowd", "publish", {"publishers": 1, "backlog": 1, "n": 10_000, "burst": 200}), IDLE)
MQTT = Run("", "publish", mqtt_subscribers=True, mqtt_publishers=True)
MQTT_ONE = {"publishers": 1, "backlog": 1}
MQTT_EIGHT = {"publishers": 8, "backlog": 64, "window": 20}
MQTT_MANY = {"publishers": 8, "backlog": 4096, "window": 20}
MQTT_SINGLE = {"n": 1, "publishers": 8, "backlog": 160, "window": 20, "burst": 200}
MQTT_RUNS = (
    replace(MQTT, name="eight-0", options=MQTT_EIGHT),
    replace(MQTT, name="one-0", options=MQTT_ONE),
    replace(MQTT, name="wildcard", options=MQTT_EIGHT | {"filter": "bench/#"}, prefix="bench/"),
    replace(MQTT, name="eight-1", options=MQTT_EIGHT, qos=1),
    replace(MQTT, name="one-1", options=MQTT_ONE, qos=1),
    replace(MQTT, name="publishes-0", options=MQTT_MANY, many=True),
    replace(MQTT, name="publishes-1", options=MQTT_MANY, many=True, qos=1),
    replace(MQTT, name="latency", options={"publishers": 8}),
    replace(MQTT, name="idle", mode="hold"),
    replace(MQTT, name="lasting", mode="hold", options={"clean": 0}, qos=1),
    Run("pusher", "publish", MQTT_EIGHT | {"window": 1}, without=("mosquitto",)),
    Run("http-mqtt", "publish", MQTT_EIGHT | {"window": 1}, mqtt_subscribers=True, without=("mosquitto",)),
    Run("mqtt-pusher", "publish", MQTT_EIGHT, mqtt_publishers=True, without=("mosquitto",)),
    replace(MQTT, name="present", options=MQTT_SINGLE, qos=1, without=("mosquitto",)),
    replace(MQTT, name="absent", options=MQTT_SINGLE | {"absent": 10_000}, qos=1, without=("mosquitto",)),
)
"""mosquitto has neither HTTP nor Pusher clients, and would fill the memory with a copy of each message for each absent session"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: a field of what the load generator prints."""

    run: str
    field: str
    title: str
    unit: str
    more_is_better: bool = True
    scale: float = 1
    digits: int = 0


DELIVERIES = (
    Figure("eight", "deliveries_per_s", "fan-out, 8 publishers at once", "deliveries/s"),
    Figure("one", "deliveries_per_s", "fan-out, one publish at a time", "deliveries/s"),
    Figure("eight", "server_us_per_delivery", "server CPU, 8 publishers", "µs a delivery", False, digits=2),
    Figure("one", "server_us_per_delivery", "server CPU, one publish at a time", "µs a delivery", False, digits=2),
)
MEMORY = (
    Figure("idle", "kib_per_connection", "memory of an idle connection", "KiB", False, digits=2),
    Figure("idle", "connects_per_s", "new connections", "connects/s"),
)
ALONE_FIGURES = (
    *DELIVERIES,
    Figure("unsigned", "publishes_per_s", "unsigned publishes, one subscriber each", "publishes/s"),
    Figure("signed", "publishes_per_s", "signed publishes, one subscriber each", "publishes/s"),
    Figure("latency", "p50_us", "latency at half load, median", "ms", False, 0.001, 2),
    Figure("latency", "p99_us", "latency at half load, 99 of 100", "ms", False, 0.001, 2),
    *MEMORY,
)
CLUSTER_FIGURES = (
    Figure("eight", "deliveries_per_s", "fan-out, 8 publishers at once", "deliveries/s"),
    Figure("eight", "server_us_per_delivery", "CPU of nodes and broker, 8 publishers", "µs a delivery", False, digits=2),
    Figure("presence", "joins_per_s", "members joining one presence channel", "joins/s"),
    Figure("presence", "server_us_per_join", "CPU of nodes and broker, joins", "ms a join", False, 0.001, 2),
)
HISTORY_FIGURES = (
    *DELIVERIES,
    Figure("unsigned", "publishes_per_s", "unsigned publishes, one subscriber each", "publishes/s"),
    Figure("unsigned", "server_us_per_publish", "server CPU, one subscriber each", "µs a publish", False, digits=2),
    *MEMORY,
    Figure("idle", "server_us_per_connect", "server CPU, new connections", "µs a connection", False, digits=1),
)
PAGE_FIGURES = tuple(
    Figure(f"acks-{each}", name, f"{title}, {each} channel{'s' if each > 1 else ''} each", unit, False, scale, digits)
    for each in (1, 20)
    for name, title, unit, scale, digits in (
        ("server_cpu", "server CPU", "% of a core", 100, 2),
        ("pongs_per_s", "acknowledgements", "a second", 1, 0),
        ("p99_us", "latency, 99 of 100", "ms", 0.001, 2),
    )
)
STREAM_FIGURES = (
    *DELIVERIES,
    Figure("crowd", "deliveries_per_s", "fan-out to 10,000, one publish at a time", "deliveries/s"),
    Figure("crowd", "server_us_per_delivery", "server CPU, 10,000 subscribers", "µs a delivery", False, digits=2),
    *MEMORY,
)
MQTT_FIGURES = (
    Figure("eight-0", "deliveries_per_s", "fan-out, QoS 0, 8 publishers", "deliveries/s"),
    Figure("one-0", "deliveries_per_s", "fan-out, QoS 0, one publish at a time", "deliveries/s"),
    Figure("wildcard", "deliveries_per_s", "fan-out to bench/#, QoS 0, 8 publishers", "deliveries/s"),
    Figure("eight-1", "deliveries_per_s", "fan-out, QoS 1, 8 publishers", "deliveries/s"),
    Figure("one-1", "deliveries_per_s", "fan-out, QoS 1, one publish at a time", "deliveries/s"),
    *(
        Figure(run, "server_us_per_delivery", f"server CPU, {title}", "µs a delivery", False, digits=2)
        for run, title in (
            ("eight-0", "QoS 0, 8 publishers"),
            ("one-0", "QoS 0, one publish at a time"),
            ("eight-1", "QoS 1, 8 publishers"),
            ("one-1", "QoS 1, one publish at a time"),
        )
    ),
    Figure("publishes-0", "publishes_per_s", "publishes, QoS 0, one subscriber each", "publishes/s"),
    Figure("publishes-1", "publishes_per_s", "publishes, QoS 1, one subscriber each", "publishes/s"),
    Figure("latency", "p50_us", "latency at half load, median", "ms", False, 0.001, 2),
    Figure("latency", "p99_us", "latency at half load, 99 of 100", "ms", False, 0.001, 2),
    Figure("idle", "kib_per_connection", "memory of an idle connection, QoS 0", "KiB", False, digits=2),
    Figure("idle", "connects_per_s", "new connections with one subscription", "connects/s"),
    Figure("lasting", "kib_per_connection", "memory of a connection, persistent, QoS 1", "KiB", False, digits=2),
    Figure("lasting", "connects_per_s", "new connections with a persistent session", "connects/s"),
    Figure("pusher", "deliveries_per_s", "HTTP to Pusher, 8 publishers", "deliveries/s"),
    Figure("http-mqtt", "deliveries_per_s", "HTTP to MQTT, 8 publishers", "deliveries/s"),
    Figure("mqtt-pusher", "deliveries_per_s", "MQTT to Pusher, 8 publishers", "deliveries/s"),
    Figure("present", "publishes_per_s", "publishes, QoS 1, one subscriber in all", "publishes/s"),
    Figure("absent", "publishes_per_s", "the same with 10,000 absent sessions", "publishes/s"),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """The bound for a figure of this server: a multiple of the figure of another server, or a number without another server.

    difference: the figure is compared with the sum of the other's figure and `bound`, instead of the product. The bound has the
    unit of the table.
    alone: the goal is not one of several workers.
    other_run: the figure is compared with the same server's figure under this load.
    noisy: if the other server differs from its own second run by more than the bound, this difference is the bound.
    """

    run: str
    field: str
    other: str | None
    bound: float
    at_least: bool
    ours: str = "push1st"
    difference: bool = False
    noisy: bool = False
    alone: bool = False
    other_run: str = ""


ALONE_GOALS = (
    Goal("eight", "deliveries_per_s", "alone", 1.6, True),
    Goal("eight", "server_us_per_delivery", "alone", 1.15, False),
    Goal("eight", "deliveries_per_s", "uws", 0.95, True),
    Goal("eight", "deliveries_per_s", "soketi", 5, True),
    Goal("eight", "deliveries_per_s", "nchan", 3, True),
    Goal("one", "server_us_per_delivery", "uws", 1.2, False),
    Goal("one", "server_us_per_delivery", "csend", 1.4, False),
    Goal("unsigned", "publishes_per_s", "uws", 1.0, True),
    Goal("signed", "publishes_per_s", "soketi", 4, True),
    Goal("idle", "kib_per_connection", None, 6, False),
    Goal("idle", "connects_per_s", "uws", 0.4, True),
)
CLUSTER_GOALS = tuple(
    Goal(run, field, "soketi", 5, True, ours)
    for run, field in (("eight", "deliveries_per_s"), ("presence", "joins_per_s"))
    for ours in ("push1st", "embedded")
)
HISTORY_GOALS = (
    Goal("unsigned", "server_us_per_publish", "plain", 2, False, "history", difference=True, alone=True),
    Goal("one", "server_us_per_delivery", "plain", 1.02, False, "history", noisy=True),
    Goal("eight", "deliveries_per_s", "plain", 0.9, True, "history"),
    Goal("eight", "deliveries_per_s", "history", 0.95, True, "pages"),
    Goal("idle", "kib_per_connection", "history", 0.4, False, "pages", difference=True),
    Goal("idle", "server_us_per_connect", "history", 1.5, False, "pages"),
)
PAGE_GOALS = tuple(Goal(run.name, "server_cpu", "history", 5, False, "pages", difference=True) for run in PAGE_RUNS)
STREAM_GOALS = (
    *(
        Goal(run, "server_us_per_delivery", other, 1.0, False, "sse", noisy=other == "websocket")
        for run in ("one", "crowd")
        for other in ("websocket", "nchan-sse")
    ),
    Goal("idle", "kib_per_connection", None, 4, False, "sse"),
)
MQTT_GOALS = (
    *(
        Goal(run, field, "mosquitto", bound, at_least, "mqtt")
        for run, field, bound, at_least in (
            ("eight-0", "deliveries_per_s", 3, True),
            ("one-0", "deliveries_per_s", 0.8, True),
            ("eight-1", "deliveries_per_s", 1, True),
            ("one-1", "deliveries_per_s", 0.5, True),
            ("publishes-0", "publishes_per_s", 0.6, True),
            ("publishes-1", "publishes_per_s", 0.5, True),
            ("latency", "p50_us", 1.2, False),
            ("idle", "connects_per_s", 0.4, True),
        )
    ),
    Goal("eight-0", "deliveries_per_s", "mqtt-alone", 1.6, True, "mqtt"),
    Goal("publishes-1", "publishes_per_s", "mqtt-alone", 0.7, True, "mqtt"),
    Goal("idle", "connects_per_s", None, 7000, True, "mqtt"),
    Goal("idle", "kib_per_connection", None, 3, False, "mqtt"),
    Goal("lasting", "kib_per_connection", None, 4.5, False, "mqtt"),
    *(
        Goal(run, field, None, bound, True, "mqtt", other_run=other)
        for run, field, bound, other in (
            ("wildcard", "deliveries_per_s", 0.9, "eight-0"),
            ("http-mqtt", "deliveries_per_s", 0.95, "pusher"),
            ("mqtt-pusher", "deliveries_per_s", 0.95, "pusher"),
            ("absent", "publishes_per_s", 0.8, "present"),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Suite:
    """Runs that are measured together. base: the server to which ratios refer. busy: runs whose CPU shares are shown, with names.

    compared: two servers that are compared with a third one, and the second of them is the same as the third one. Without the
    second one, nothing is compared.
    """

    title: str
    names: Sequence[str]
    runs: Sequence[Run]
    figures: Sequence[Figure]
    goals: Sequence[Goal]
    base: str
    base_label: str
    busy: Sequence[tuple[str, str]]
    nodes: int
    compared: tuple[str, str, str] = ("push1st", "again", "before")

    def __post_init__(self) -> None:
        figures = {(figure.run, figure.field) for figure in self.figures}
        for goal in self.goals:
            assert (goal.run, goal.field) in figures, f"{self.title}: the goal {goal} has no figure"
            assert not goal.other_run or (goal.other_run, goal.field) in figures, goal
            assert goal.ours in self.names, goal
            assert goal.other is None or goal.other in self.names, goal


PUBLISH_BUSY = (("one", "one publish at a time"), ("eight", "8 publishers"))
ALONE = Suite("Push1st and its peers", NAMES, ALONE_RUNS, ALONE_FIGURES, ALONE_GOALS, "uws", "uWebSockets.js", PUBLISH_BUSY, 1)
CLUSTER = Suite(
    "Push1st and soketi, two nodes each",
    CLUSTER_NAMES,
    CLUSTER_RUNS,
    CLUSTER_FIGURES,
    CLUSTER_GOALS,
    "soketi",
    "soketi",
    (("eight", "8 publishers"), ("presence", "joins")),
    2,
)
HISTORY = Suite(
    "Push1st with and without history",
    HISTORY_NAMES,
    HISTORY_RUNS,
    HISTORY_FIGURES,
    HISTORY_GOALS,
    "plain",
    "no history",
    PUBLISH_BUSY,
    1,
    ("history", "plain-again", "plain"),
)
ACKNOWLEDGEMENTS = Suite(
    "Push1st with 10,000 pages",
    PAGE_NAMES,
    PAGE_RUNS,
    PAGE_FIGURES,
    PAGE_GOALS,
    "history",
    "clients that are not pages",
    (),
    1,
    ("pages", "history-again", "history"),
)
STREAMS = Suite(
    "Server-sent events",
    STREAM_NAMES,
    STREAM_RUNS,
    STREAM_FIGURES,
    STREAM_GOALS,
    "websocket",
    "WebSockets of this server",
    (*PUBLISH_BUSY, ("crowd", "10,000 subscribers")),
    1,
    ("sse", "websocket-again", "websocket"),
)
DEVICES = Suite(
    "MQTT",
    MQTT_NAMES,
    MQTT_RUNS,
    MQTT_FIGURES,
    MQTT_GOALS,
    "mosquitto",
    "mosquitto",
    tuple((run.name, run.name) for run in MQTT_RUNS if run.mode == "publish" and run.name != "latency"),
    1,
    ("mqtt", "", "mosquitto"),
)
SUITES = {
    "alone": ALONE,
    "cluster": CLUSTER,
    "history": HISTORY,
    "pages": ACKNOWLEDGEMENTS,
    "sse": STREAMS,
    "mqtt": DEVICES,
}
