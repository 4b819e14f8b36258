"""The servers of the bench: how the bench installs, starts and stops each server, and publishes to it.

`PEERS` lists the servers. The bench installs each peer into `bench/.build/`; it changes nothing on the system, starts no service,
and needs no privileges. If the installation of a peer fails, the bench omits the peer with a note.

A `Peer` describes a server that does not run yet. `running()` starts the server on free ports of 127.0.0.1 in a temporary folder,
waits until it accepts connections, and stops it with all its children at the end. If a peer has several nodes, `running()` also
starts a Valkey that connects them. This module contains no measurements.
"""

import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from installing import (
    HERE,
    MOSQUITTO,
    NCHAN,
    NCHAN_MODULE,
    NODE,
    CannotRun,
    compiled,
    interpreter,
    mosquitto,
    nginx,
    node_package,
    run,
)
from publishes import (
    APP,
    KEY,
    PAYLOAD,
    SECRET,
    Request,
    access_token,
    csend_event,
    nchan_event,
    nchan_kept_event,
    signed_event,
    unsigned_event,
)

sys.path.insert(0, str(HERE.parent))
from tests.support import valkey

PUSHER_PATH = f"/app/{KEY}?protocol=7&client=bench&version=1"
HOOKS = (
    "  hook: {{ trigger: [ register, unregister, join, leave ], endpoint: '{0}' }}\n"
    "  webhooks:\n    - {{ url: '{0}', batch: 100, events: [ channel_occupied, channel_vacated, member_added, member_removed,"
    " cache_miss, subscription_count ] }}\n"
)
"""of an app that tells of everything but what clients publish"""
HISTORY = "  history: [ { size: 100, ttl: 300 } ]\n  resume: { seconds: 300, acknowledge: 10 }\n"
"""of an app that keeps the last 100 messages of each channel"""
MQTT = "  mqtt: {{ listen: [ 'tcp://127.0.0.1:{0}' ], push: [ public ], activity-timeout: 3600, publishes: 0 }}\n"
"""of a server whose MQTT clients may publish at any rate"""
RESUME_PATH = f"/resume/%p{PUSHER_PATH}"
SSE_PATH = f"/sse/app/{KEY}/%s"
START_SECONDS = 20
STOP_SECONDS = 3
REALTIME = ("timeout", "--kill-after=5", "600", "chrt", "--rr", "5")
"""runs a command with real-time priority, for ten minutes at most"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    label: str
    version: str
    path: str
    """of its WebSockets; `%s` stands for the channel. "": the server has none"""
    pusher: bool
    """subscribers speak the Pusher protocol; otherwise whoever connects is subscribed"""
    plain: Request | None
    signed: Request | None
    command: Callable[[Path, int, int, int, int], list[str]]
    """(folder, WebSocket port, API port, broker's port or 0, MQTT port or 0) → what to run; may write files into the folder"""
    environment: dict[str, str]
    one_port: bool = True
    """the API, or MQTT, is on the port of the WebSockets"""
    workers: int = 1
    """processes to wait for, of this server"""
    nodes: int = 1
    """servers that are one, over a broker; one alone needs none"""
    client: dict[str, int | str] = field(default_factory=dict)
    """options of load.c that select the kind of client"""
    mqtt: bool = False
    """clients may speak MQTT"""


@dataclass(frozen=True, slots=True)
class Running:
    """ports, apis, mqtts: those of the nodes. pids: those of all processes, including the broker."""

    peer: Peer
    ports: list[int]
    apis: list[int]
    pids: list[int]
    mqtts: list[int]

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def api(self) -> int:
        return self.apis[0]


def write_requests(
    path: Path, peer: Peer, channels: int, count: int, signed: bool, make: Request | None = None, prefix: str = "bench-"
) -> Path:
    """Writes the file of requests that load.c reads: the length of each request, a newline, and its bytes.

    make: returns a request, instead of the peer's HTTP requests. prefix: of the names of the channels.
    """
    make = make or (peer.signed if signed else peer.plain)
    if make is None:
        raise CannotRun(f"{peer.label} cannot be asked {'signed' if signed else 'unsigned'}")
    with path.open("wb") as file:
        for number in range(count):
            request = make(f"{prefix}{number % channels}", f"~{number:08d}~".ljust(PAYLOAD, "x"))
            file.write(b"%d\n%b" % (len(request), request))
    return path


# ---- the peers -------------------------------------------------------------------------------------------------------------


NGINX_CONF = """\
load_module {module};
daemon off;
{user}
pid nginx.pid;
error_log error.log warn;
worker_processes 1;
worker_rlimit_nofile {files};
events {{ worker_connections 65536; multi_accept on; }}
http {{
    access_log off;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    keepalive_requests 1000000000;
    keepalive_timeout 600;
    nchan_shared_memory_size 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/sub/(.+)$ {{ nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
        location ~ ^/pub/(.+)$ {{ nchan_publisher http; nchan_channel_id $1; nchan_store_messages off; }}
        location ~ ^/events/(.+)$ {{ nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
        location ~ ^/keep/(.+)$ {{
            nchan_publisher http; nchan_channel_id $1; nchan_message_buffer_length 100; nchan_message_timeout 300s;
        }}
    }}
}}
"""


MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
{user}
allow_anonymous true
persistence false
max_queued_messages 0
set_tcp_nodelay true
log_dest stderr
log_type error
"""


def push1st(
    workers: int,
    hooks: str,
    nodes: int = 1,
    checkout: Path = HERE.parent,
    more: str = "",
    protocols: str = "",
    server: str = "",
) -> Peer:
    """This server.

    checkout: the folder of the build.
    more: further settings of the app.
    protocols: further values of `server.proto`.
    server: further settings of `server`; `{0}` stands for the MQTT port.
    """
    python, built = interpreter()
    source = checkout / "src"
    environment = {"PYTHONPATH": str(source)}
    version = run(python, "-c", "import push1st.cli; print(push1st.__version__)", cwd=source).split()[-1]

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:
        (folder / "apps.yml").write_text(
            f"{APP}:\n  enable: true\n  name: bench\n  key: {KEY}\n  secret: {SECRET}\n"
            "  options: { client-messages: true }\n  channels: [ public, private, presence ]\n  limits: { members: 0 }\n"
            + (HOOKS.format(hooks) if hooks else "")
            + more
        )
        (folder / "server.yml").write_text(
            f"server:\n  listen: tcp://127.0.0.1:{port}\n  proto: [ pusher, websocket{protocols} ]\n"
            f"  workers: {workers}\n  drain: 0\n  pusher: {{ activity-timeout: 120 }}\n"
            + server.format(mqtt)
            + f"api:\n  listen: [ tcp://127.0.0.1:{api} ]\n  keep-alive-timeout: 600\n"
            "log: { level: warning }\n"
            "credentials: [ apps.yml ]\n" + (f"broker: redis://127.0.0.1:{broker}\n" if broker else "")
        )
        return [python, "-m", "push1st", "serve", "-c", str(folder / "server.yml")]

    label = "Push1st" + (f", {workers} workers" if workers > 1 else f", {nodes} nodes" if nodes > 1 else "")
    python_version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    return Peer(
        "push1st",
        label,
        f"{version} (Python {python_version}{built})",
        PUSHER_PATH,
        True,
        unsigned_event,
        signed_event,
        command,
        environment,
        False,
        workers,
        nodes,
    )


def with_history(name: str, label: str, workers: int, hooks: str, path: str = PUSHER_PATH, **client: int | str) -> Peer:
    """This server with a history of all channels. path, client: of the kind of client."""
    sse = bool(client.get("sse"))
    peer = push1st(workers, hooks, more=HISTORY, protocols=", sse" if sse else "")
    label += f", {workers} workers" if workers > 1 else ""
    return replace(peer, name=name, label=label, path=path, pusher=not sse, client=client)


def without_history(name: str, label: str, workers: int, hooks: str) -> Peer:
    label += f", {workers} workers" if workers > 1 else ""
    return replace(push1st(workers, hooks), name=name, label=label)


def with_mqtt(workers: int, hooks: str, nodes: int = 1) -> Peer:
    """This server with MQTT. Its clients have an access token, because the server limits the sessions of anonymous clients."""
    peer = push1st(workers, hooks, nodes, protocols=", mqtt", server=MQTT)
    peer = replace(peer, name="mqtt", mqtt=True, client={"user": KEY, "password": access_token("bench*")})
    with running(peer):  # a build without MQTT does not open the port
        return peer


def mqtt_mosquitto() -> Peer:
    program, libraries = mosquitto()
    packages = [path.name.split("_")[1] for path in MOSQUITTO.glob("mosquitto_*.deb")]

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:  # noqa: ARG001
        conf = folder / "mosquitto.conf"
        user = "" if os.geteuid() else "user root"  # started as root, it would want an account of its own
        conf.write_text(MOSQUITTO_CONF.format(port=mqtt, user=user))
        return [str(program), "-c", str(conf)]

    environment = {"LD_LIBRARY_PATH": str(libraries)}
    version = packages[0] if packages else ""
    return Peer("mosquitto", "mosquitto", version, "", False, None, None, command, environment, mqtt=True)


def uws() -> Peer:
    version = node_package("uWebSockets.js")
    node = run("node", "--version").strip()

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:  # noqa: ARG001
        return ["node", str(HERE / "peers/uws.js"), str(port)]

    environment = {"NODE_PATH": str(NODE / "node_modules")}
    return Peer(
        "uws",
        "uWebSockets.js",
        f"npm uwebsockets {version}, Node {node}",
        PUSHER_PATH,
        True,
        unsigned_event,
        None,
        command,
        environment,
    )


def soketi(nodes: int = 1) -> Peer:
    version = node_package("@soketi/soketi")

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:  # noqa: ARG001
        return ["node", str(NODE / "node_modules/@soketi/soketi/bin/server.js"), "start"]

    environment = {
        "SOKETI_HOST": "127.0.0.1",
        "SOKETI_PORT": "{port}",
        "SOKETI_DEFAULT_APP_ID": APP,
        "SOKETI_DEFAULT_APP_KEY": KEY,
        "SOKETI_DEFAULT_APP_SECRET": SECRET,
        "SOKETI_PRESENCE_MAX_MEMBERS": "1000000",
        "NODE_ENV": "production",
    }
    label = "soketi"
    if nodes > 1:
        label += f", {nodes} nodes"
        environment |= {"SOKETI_ADAPTER_DRIVER": "redis", "SOKETI_DB_REDIS_HOST": "127.0.0.1", "SOKETI_DB_REDIS_PORT": "{broker}"}
    return Peer("soketi", label, version, PUSHER_PATH, True, None, signed_event, command, environment, nodes=nodes)


def nchan(sse: bool = False) -> Peer:
    """nchan. sse: with server-sent events, and with messages that nchan keeps; otherwise with WebSockets, and without them."""
    program = nginx()
    packages = sorted(path.name.split("_")[1].replace("%3a", ":") for path in NCHAN.glob("libnginx-mod-nchan_*.deb"))
    nginx_version = run(program, "-v").strip().rpartition("/")[2]

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:  # noqa: ARG001
        (folder / "nginx.conf").write_text(
            NGINX_CONF.format(
                module=NCHAN / "root" / NCHAN_MODULE,
                port=port,
                user="" if os.geteuid() else "user root;",  # started as root, it would want an account for its worker
                files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            )
        )
        return [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "error.log"]

    version = f"{packages[-1] if packages else ''} (nginx {nginx_version})"
    if sse:
        path, event = "/events/%s", nchan_kept_event
        return Peer("nchan-sse", "nchan, SSE", version, path, False, event, None, command, {}, client={"sse": 1})
    return Peer("nchan", "nchan", version, "/sub/%s", False, nchan_event, None, command, {})


def csend() -> Peer:
    program = compiled(HERE / "peers/csend.c")

    def command(folder: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:  # noqa: ARG001
        return [str(program), str(port)]

    return Peer("csend", "bare C send", "bench/peers/csend.c", "/", False, csend_event, None, command, {})


NAMES = ("push1st", "alone", "uws", "soketi", "nchan", "csend")
CLUSTER_NAMES = ("push1st", "embedded", "soketi")
HISTORY_NAMES = ("plain", "plain-again", "history", "pages")
PAGE_NAMES = ("history", "history-again", "pages")
MQTT_NAMES = ("mqtt", "mqtt-alone", "mosquitto")
STREAM_NAMES = ("websocket", "websocket-again", "sse", "nchan-sse")


def earlier(name: str, workers: int, hooks: str, nodes: int, checkout: Path) -> Peer:
    return replace(push1st(workers, hooks, nodes, checkout), name=name, label=EARLIER[name])


EARLIER = {"before": "earlier build", "again": "the same again"}
"""an earlier build of this server, which runs twice: the difference between its runs is the noise of the comparison"""


def peers(
    names: Sequence[str], workers: int, hooks: str = "", nodes: int = 1, before: Path = HERE.parent
) -> tuple[list[Peer], dict[str, str]]:
    """Installs the named peers; returns the peers that can run, and why the others cannot.

    hooks: the endpoint of this server's webhooks. before: the checkout of an earlier build.
    """
    makers: dict[str, Callable[[], Peer]] = {
        "push1st": lambda: push1st(workers, hooks, nodes),
        "alone": lambda: replace(push1st(1, hooks), name="alone"),
        "embedded": lambda: replace(push1st(nodes, hooks), name="embedded"),
        **{name: partial(earlier, name, workers, hooks, nodes, before) for name in EARLIER},
        "uws": uws,
        "soketi": lambda: soketi(nodes),
        "nchan": nchan,
        "csend": csend,
        "plain": lambda: without_history("plain", "no history", workers, hooks),
        "plain-again": lambda: without_history("plain-again", "the same again", workers, hooks),
        "history": lambda: with_history("history", "history", workers, hooks),
        "history-again": lambda: with_history("history-again", "the same again", workers, hooks),
        "pages": lambda: with_history("pages", "history and pages", workers, hooks, RESUME_PATH, page=1),
        "websocket": lambda: with_history("websocket", "WebSocket", workers, hooks),
        "websocket-again": lambda: with_history("websocket-again", "the same again", workers, hooks),
        "sse": lambda: with_history("sse", "SSE", workers, hooks, SSE_PATH, sse=1),
        "nchan-sse": lambda: nchan(sse=True),
        "mqtt": lambda: with_mqtt(workers, hooks),
        "mqtt-alone": lambda: replace(with_mqtt(1, hooks), name="mqtt-alone"),
        "mosquitto": mqtt_mosquitto,
    }
    ready: list[Peer] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            ready.append(makers[name]())
        except CannotRun as error:
            left_out[name] = str(error)
    return ready, left_out


# ---- running ---------------------------------------------------------------------------------------------------------------


_ports = iter(random.sample(range(20000, 32000), 12000))


def free_port() -> int:
    """Returns a free port, below the range that the kernel uses for outgoing connections. No later call returns the same port."""
    for port in _ports:
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise CannotRun("no free port between 20000 and 32000")


def broker_version() -> str:
    """Returns the version of the broker between the nodes."""
    program = valkey.program()
    words = dict(word.partition("=")[::2] for word in run(program, "--version").split())
    return f"{Path(program).name} {words.get('v', '')}"


def accepts(port: int) -> bool:
    with socket.socket() as trial:
        trial.settimeout(1)
        return trial.connect_ex(("127.0.0.1", port)) == 0


def all_serve(peer: Peer, api: int) -> bool:
    """Returns whether all workers of the server are ready."""
    if peer.workers == 1:
        return True
    with urllib.request.urlopen(f"http://127.0.0.1:{api}/metrics", timeout=5) as answer:
        return f"push1st_workers {peer.workers}.0" in answer.read().decode()


def family(pid: int) -> list[int]:
    """Returns a process and its descendants, by the parents in /proc/*/stat."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def stop_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end this process like an exception, so that it stops its servers."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))


def raise_file_limit() -> int:
    """Raises the limit of open files to its maximum, for this process and its children; returns the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextmanager
def running(
    peer: Peer, cores: set[int] | None = None, realtime: bool = False, patience: float = START_SECONDS
) -> Iterator[Running]:
    """Runs the peer on free ports and only on these cores; all its processes are stopped at the end.

    realtime: whether the nodes run with real-time priority.
    patience: the seconds in which each node must start.
    """
    with ExitStack() as stack:
        broker, pids = 0, []
        if peer.nodes > 1:
            broker = free_port()
            between = valkey.Valkey(port=broker)
            stack.callback(between.close)
            pids.append(between.pid)
        nodes = [stack.enter_context(node(peer, cores, broker, realtime, patience)) for _ in range(peer.nodes)]
        for _, _, _, more in nodes:
            pids += more
        yield Running(peer, [one[0] for one in nodes], [one[1] for one in nodes], pids, [one[2] for one in nodes])


@contextmanager
def node(
    peer: Peer, cores: set[int] | None, broker: int, realtime: bool, patience: float
) -> Iterator[tuple[int, int, int, list[int]]]:
    """Runs one server of a peer; returns its WebSocket port, its API port, its MQTT port or 0, and its processes."""
    folder = Path(tempfile.mkdtemp(prefix="push1st-bench-"))
    port = free_port()
    api = port if peer.one_port else free_port()
    mqtt = 0 if not peer.mqtt else port if peer.one_port else free_port()
    environment = {key: value.format(port=port, broker=broker) for key, value in peer.environment.items()}
    command = peer.command(folder, port, api, broker, mqtt)
    if cores and shutil.which("taskset"):
        command = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]
    if realtime:
        command = [*REALTIME, *command]
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + patience
        while not (all(map(accepts, {port, api, mqtt} - {0})) and all_serve(peer, api)):
            if process.poll() is not None or time.monotonic() > deadline:
                words = " ".join(log.read_text(errors="replace").split())
                raise CannotRun(f"{peer.label} did not start ({process.poll()}): {words[-300:]}")
            time.sleep(0.05)
        time.sleep(0.3)  # for peers' workers that come after the socket
        yield port, api, mqtt, family(process.pid)
    finally:
        for sign, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            try:
                os.killpg(process.pid, sign)  # its own process group, made above
                process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, str]:
    """Returns the properties of the machine on which the figures depend."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
