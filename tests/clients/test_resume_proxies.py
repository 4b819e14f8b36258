"""Clients recover behind a reverse proxy that confirms bytes which never arrive, and in a network that drops all packets."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blackhole import blackhole
from tests.support.process import ServerProcess, free_ports, program, running, wait_until
from tests.support.recovering import (
    BOUND,
    CONFIG,
    Clients,
    NodePages,
    PageClient,
    Publisher,
    RawClient,
    StreamClient,
    kept,
    page_name,
    together,
    until_joined,
    verify,
)

PATIENCE = 2
NETWORKS = itertools.count(os.getpid() % 200)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(CONFIG, kept()) as process:
        yield process


@pytest.fixture
def nginx(server: ServerProcess) -> Iterator[int]:
    """Runs an nginx with socket buffers of 1 MB; returns its port."""
    folder = Path(tempfile.mkdtemp(prefix="p1-nginx-"))
    (port,) = free_ports(1)
    paths = "".join(f"{which}_temp_path {folder / which}; " for which in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        "http { map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n"
        f"{paths} access_log off; server {{ listen 127.0.0.1:{port} sndbuf=1m rcvbuf=1m;\n"
        f"location / {{ proxy_pass http://127.0.0.1:{server.ws_port}; proxy_http_version 1.1; proxy_buffer_size 512k;\n"
        "proxy_buffers 4 512k; proxy_busy_buffers_size 1m; proxy_set_header Upgrade $http_upgrade;\n"
        "proxy_set_header Connection $connection_upgrade; } } }\n"
    )
    process = subprocess.Popen(
        [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    )
    try:
        wait_until(lambda: server.get("/health", port=port).status == 200 if _listens(port) else False, "nginx answers")
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def unconfirmed(port: int) -> int:
    """Returns the bytes that the kernel keeps for a port, because the other side has not acknowledged them (TCP)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01")


def _listens(port: int) -> bool:
    return any(f":{port:04X} 00000000:0000 0A" in line for line in Path("/proc/net/tcp").read_text().splitlines())


def test_bytes_that_a_reverse_proxy_confirmed_and_lost_are_sent_again(server: ServerProcess, nginx: int, channel: str) -> None:
    """The server has no unconfirmed bytes at the cut, because all of them are in the buffers of nginx."""
    channels = [channel, f"private-{channel}"]
    with blackhole(nginx) as proxy:
        clients: list[Clients] = [
            NodePages(proxy.port, {page_name(): channels}, activityTimeout=1000, pongTimeout=1000),
            PageClient(proxy.port, channels, patience=PATIENCE),
            RawClient(proxy.port, [channel], patience=PATIENCE),
            StreamClient(proxy.port, [channel], patience=PATIENCE),
        ]
        publisher = Publisher([server.api_port], channels, 20, padding=1000)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2)
            at = proxy.freeze(later=False)
            time.sleep(1)
            wait_until(lambda: unconfirmed(server.ws_port) == 0, "nginx has confirmed all bytes")
            until_joined(clients, 2)
            proxy.cut()
            until_joined(clients, 3)
            verify(clients, [publisher], recovered=2, repeat_seconds=BOUND, cuts=[at])


def ip(*arguments: str) -> None:
    subprocess.run([program("ip", "iproute2"), *arguments], check=True, capture_output=True, timeout=10)


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """Makes a network namespace with one interface to this machine; yields its name and the address of this machine."""
    number = next(NETWORKS) % 200
    name, near, far = f"p1n{number}", f"p1a{number}", f"p1b{number}"
    with contextlib.ExitStack() as stack:
        try:
            ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a network namespace needs the rights of root: {error.stderr.decode()}")
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"10.213.{number}.1/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"10.213.{number}.2/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        yield name, f"10.213.{number}.1"


def test_page_in_a_network_that_drops_all_packets_recovers(network: tuple[str, str], channel: str) -> None:
    """Neither side gets a reset or the end of the stream."""
    name, address = network
    channels = [channel, f"private-{channel}"]
    (port,) = free_ports(1)
    config = CONFIG | {"server": {**CONFIG["server"], "listen": f"tcp://{address}:{port}"}}
    link = f"p1a{address.split('.')[2]}"
    with running(config, kept()) as server:
        prefix = [program("ip", "iproute2"), "netns", "exec", name]
        client = NodePages(port, {page_name(): channels}, prefix=prefix, wsHost=address, activityTimeout=1000, pongTimeout=1000)
        publisher = Publisher([server.api_port], channels, 20)
        with together(client, publisher):
            until_joined([client])
            time.sleep(2)
            at = time.monotonic()
            ip("link", "set", link, "down")
            time.sleep(5)
            ip("link", "set", link, "up")
            until_joined([client], 2)
            verify([client], [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])
