"""The sockets that clients connect to: bound by whoever starts first, listened on by workers.

It must not know what is spoken on them. With one worker the worker binds; with several the supervisor does, so that
sockets, and the connections that wait in them, outlive the workers that accept from them.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from push1st.config.model import Config, Listen
from push1st.errors import ConfigError

BACKLOG = 4096
GRACE = 0.25
"""the part of `drain` in which a server says it is not ready, but still takes connections: load balancers need to see it"""
FREE_SECONDS = 1.0
"""for a stopping server to close its listeners, in addition to `GRACE` of `drain`"""
FREE_LOOK_SECONDS = 0.02
UNIX_MODE = 0o660
"""of Unix sockets: who may open one may call unsigned, where `api.trust` has `unix`"""
BALANCED = sys.platform == "linux"
"""Whether the kernel spreads new connections over the sockets of one address (SO_REUSEPORT); elsewhere workers share one."""

Role = Literal["server", "api"]
ROLES: tuple[Role, ...] = ("server", "api")


class AddressInUse(ConfigError):
    """Another process listens on the address."""


class BoundSocket(msgspec.Struct, frozen=True):
    """A socket to listen on. role: the section of the configuration it is from. address: with the port it really has."""

    role: Role
    address: Listen
    socket: socket.socket


def bind(role: Role, address: Listen, *, shared: bool = False) -> list[BoundSocket]:
    """Binds an address, which may be several (`tcp://*:6001` is IPv4 and IPv6), without listening yet.

    shared: others of us may bind the TCP address too (`again`). Raises ConfigError when it cannot be had.
    """
    try:
        if address.scheme == "unix":
            return [BoundSocket(role, address, _unix(Path(address.path)))]
        if shared and address.port:  # a stranger's socket would share the port with ours, in silence
            for one in _tcp(role, address, False):
                one.socket.close()
        return _tcp(role, address, shared)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise ConfigError(f"cannot listen on {address}: {exc.strerror or exc}") from exc
        show = f"ss -ltnp 'sport = :{address.port}'" if sys.platform == "linux" else f"lsof -nP -iTCP:{address.port} -sTCP:LISTEN"
        advice = f"`{show}` shows the process; stop it, or change {role}.listen"
        raise AddressInUse(f"cannot listen on {address}: {exc.strerror or exc}: {advice}") from exc


def wait_until_free(config: Config, waiting: Callable[[str], None]) -> None:
    """Waits until no other server listens on the addresses, at most as long as a server with this configuration takes to stop.

    waiting: called once with the error, if an address is in use.
    """
    end = time.monotonic() + config.server.drain * GRACE + FREE_SECONDS if not config.demo else 0
    told = False
    for role in ROLES:
        for address in addresses(config, role):
            while True:
                try:
                    close(bind(role, address))
                except AddressInUse as exc:
                    if time.monotonic() >= end:
                        return  # the caller's own `bind` raises the error
                    if not told:
                        waiting(str(exc))
                    told = True
                    time.sleep(FREE_LOOK_SECONDS)
                except ConfigError:
                    return
                else:
                    break


def again(door: BoundSocket) -> BoundSocket:
    """Another socket for the same TCP address, which was bound as `shared`."""
    return BoundSocket(door.role, door.address, _bound(door.socket.family, door.socket.getsockname(), True))


def close(doors: Iterable[BoundSocket]) -> None:
    """Closes sockets for good: those of files are gone from their folders."""
    for door in doors:
        door.socket.close()
        if door.address.scheme == "unix":
            Path(door.address.path).unlink(missing_ok=True)


def addresses(config: Config, role: Role) -> Sequence[Listen]:
    return config.server.listen if role == "server" else config.api.listen


def with_ports(config: Config, doors: Sequence[BoundSocket]) -> Config:
    """The configuration with the ports that port 0 became. doors: of all its addresses, in order."""

    def listen(role: Role) -> tuple[Listen, ...]:
        return tuple(dict.fromkeys(door.address for door in doors if door.role == role))

    return msgspec.structs.replace(
        config,
        server=msgspec.structs.replace(config.server, listen=listen("server")),
        api=msgspec.structs.replace(config.api, listen=listen("api")),
    )


def _tcp(role: Role, address: Listen, shared: bool) -> list[BoundSocket]:
    found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    doors: list[BoundSocket] = []
    port = address.port
    try:
        for family, _, _, _, name in sorted(set(found)):  # IPv4 first
            try:
                bound = _bound(family, (name[0], port, *name[2:]), shared)
            except OSError as exc:
                if doors and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a machine without IPv6
                raise
            port = bound.getsockname()[1]
            doors.append(BoundSocket(role, msgspec.structs.replace(address, port=port), bound))
    except BaseException:
        for door in doors:
            door.socket.close()
        raise
    return doors


def _bound(family: int, name: object, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(name)  # type: ignore[arg-type]  # what getaddrinfo and getsockname give
    except BaseException:
        bound.close()
        raise
    return bound


def _unix(path: Path) -> socket.socket:
    _make_room(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        os.chmod(path, UNIX_MODE)
        bound.listen(BACKLOG)  # at once, so that a second server sees that this one has it
    except BaseException:
        bound.close()
        raise
    return bound


def _make_room(path: Path) -> None:
    """Makes the folder of a Unix socket, and removes a socket nobody listens on.

    Raises ConfigError when somebody does, or when a file that is no socket is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"cannot listen on unix://{path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise AddressInUse(f"cannot listen on unix://{path}: another server does; stop it, or choose another path")
