"""Binds the sockets for clients; workers listen on the bound sockets.

This module implements no network protocol. A single worker binds its own sockets. Several workers get their sockets from the
supervisor. The sockets, and the connections that wait in the sockets, outlive a worker.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from push1st.config.addresses import Listen
from push1st.config.model import Config, Ssl
from push1st.config.mqtt import MqttSsl
from push1st.config.settings import located_key
from push1st.errors import ConfigError

BACKLOG = 4096
GRACE = 0.25
"""The fraction of `drain` in which a stopping server reports that it is not ready, but still accepts connections."""
FREE_SECONDS = 1.0
"""the maximum time that a stopping server needs to close its listeners after the end of its grace period (`GRACE` × `drain`)"""
FREE_POLL_SECONDS = 0.02
PROBE_IDLE_SECONDS = 60
"""the time without data after which the kernel probes an MQTT connection"""
PROBE_SECONDS = 15
"""the time between two probes"""
PROBES = 3
"""the number of unanswered probes after which the kernel ends a connection"""
UNIX_MODE = 0o660
"""The permissions of Unix sockets: only for owner and group, because API requests over them may need no signature (`trust`)."""
BALANCED = sys.platform == "linux"
"""Whether the kernel distributes the new connections of an address over several sockets, one for each worker (SO_REUSEPORT)."""

Role = Literal["server", "api", "server.mqtt", "metrics", "console"]
ROLES: tuple[Role, ...] = ("server", "api", "server.mqtt", "metrics", "console")
Place = tuple[Role, Listen]
"""the name of a section of the configuration (the role), and an address from the key `listen` of this section"""


class AddressInUse(ConfigError):
    """The error for an address on which another process listens."""


class BoundSocket(msgspec.Struct, frozen=True):
    """A bound socket of a section (`role`) of the configuration. `address` has the real port, even if port 0 is configured."""

    role: Role
    address: Listen
    socket: socket.socket


SocketsByPlace = Mapping[Place, Sequence[BoundSocket]]


class SocketTable:
    """The bound sockets of a supervisor.

    All workers share the Unix sockets of the table. On Linux each slot has its own socket for every TCP address of the table.
    """

    def __init__(self) -> None:
        self._sockets: dict[Place, list[BoundSocket]] = {}

    def bind_missing(self, config: Config) -> list[Place]:
        """Binds the addresses of a configuration that are not yet in the table, and returns these addresses.

        Raises ConfigError if one of the addresses cannot be bound; then the function binds no address.
        """
        added: dict[Place, list[BoundSocket]] = {}
        try:
            for place in _places(config):
                if place not in self._sockets:
                    added[place] = bind(*place, shared=BALANCED)
        except ConfigError:
            close(flat(added))
            raise
        self._sockets |= added
        return list(added)

    def remove(self, places: Iterable[Place]) -> None:
        """Closes the sockets of the addresses in `places`."""
        for place in places:
            close(self._sockets.pop(place))

    def remove_others(self, config: Config) -> None:
        """Closes the sockets of all addresses that a configuration does not contain."""
        self.remove(self._sockets.keys() - set(_places(config)))

    def for_slot(self, own: SocketsByPlace, config: Config) -> dict[Place, Sequence[BoundSocket]]:
        """Returns the sockets that a slot needs for a configuration.

        own: the current sockets of the slot. The slot keeps a socket if the configuration contains the socket's address.
        """
        return {
            place: own.get(place) or [bind_again(one) if _is_own(one) else one for one in self._sockets[place]]
            for place in _places(config)
        }

    def all(self) -> list[BoundSocket]:
        return flat(self._sockets)

    def close(self) -> None:
        """Closes all sockets."""
        close(self.all())
        self._sockets = {}


def flat(sockets: SocketsByPlace) -> list[BoundSocket]:
    return [one for those in sockets.values() for one in those]


def close_own(sockets: Iterable[BoundSocket]) -> None:
    """Closes the sockets that only one slot uses; sockets that all slots share stay open."""
    for one in sockets:
        if _is_own(one):
            one.socket.close()


def _is_own(bound: BoundSocket) -> bool:
    return BALANCED and bound.address.scheme != "unix"


def _places(config: Config) -> Iterator[Place]:
    return ((role, address) for role in ROLES for address in addresses(config, role))


def bind(role: Role, address: Listen, *, shared: bool = False) -> list[BoundSocket]:
    """Binds an address, but does not listen yet. Returns an IPv4 and an IPv6 socket for an address such as `tcp://*:6001`.

    shared: whether other sockets of this server can bind the same TCP address (`bind_again`).
    Raises ConfigError if the address cannot be bound.
    """
    try:
        if address.scheme == "unix":
            return [BoundSocket(role, address, _unix(Path(address.path)))]
        if shared and address.port:  # a first bind without SO_REUSEPORT detects another program on the port
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
    """Waits until no other server listens on the addresses. The limit is a stopping server's grace period plus `FREE_SECONDS`.

    waiting: a function to call once with the text of the error, if an address is in use.
    """
    end = time.monotonic() + config.server.drain * GRACE + FREE_SECONDS if not config.demo else 0
    reported = False
    for role, address in _places(config):
        while True:
            try:
                close(bind(role, address))
            except AddressInUse as exc:
                if time.monotonic() >= end:
                    return  # if the address is still in use later, the caller's own `bind` raises the error
                if not reported:
                    waiting(str(exc))
                reported = True
                time.sleep(FREE_POLL_SECONDS)
            except ConfigError:
                return
            else:
                break


def bind_again(bound: BoundSocket) -> BoundSocket:
    """Returns another socket for the TCP address of `bound`. `bound` must be the result of `bind(…, shared=True)`."""
    return BoundSocket(bound.role, bound.address, _bound(bound.role, bound.socket.family, bound.socket.getsockname(), True))


def close(sockets: Iterable[BoundSocket]) -> None:
    """Closes sockets, and removes the files of Unix sockets."""
    for one in sockets:
        one.socket.close()
        if one.address.scheme == "unix":
            Path(one.address.path).unlink(missing_ok=True)


def addresses(config: Config, role: Role) -> Sequence[Listen]:
    """Returns the addresses of a role."""
    if role == "server.mqtt":
        return config.server.mqtt_listen
    if role == "metrics":
        return config.metrics.listen
    if role == "console":
        return config.console.listens
    return config.server.listen if role == "server" else config.api.listen


def tls_settings(config: Config, role: Role) -> Ssl | MqttSsl | None:
    """Returns the TLS settings of a role; None if the role does not use TLS."""
    if role == "server.mqtt":
        return config.server.mqtt.ssl if any(address.scheme == "tls" for address in config.server.mqtt_listen) else None
    if role == "metrics":
        return None
    if role == "console":
        return config.console.ssl if config.console.ssl.enable and config.console.listens else None
    settings = config.server.ssl if role == "server" else config.api.ssl
    return settings if settings.enable else None


def key_of_file(config: Config, role: Role, name: str) -> str:
    """Returns the key of a TLS file of a role, with its place. name: `key`, `cert` or `ca`."""
    others = (f"server.ssl.{name}",) if role == "server.mqtt" else ()  # MQTT uses these files if it has none of its own
    return located_key(config, f"{role}.ssl.{name}", *others)


def uses_tls(role: Role, address: Listen) -> bool:
    """Returns whether an address uses TLS, if its role has TLS settings.

    The data of a Unix socket does not leave the machine, so Unix sockets need no TLS.
    """
    return address.scheme == "tls" if role == "server.mqtt" else address.scheme != "unix"


def with_ports(config: Config, sockets: Sequence[BoundSocket]) -> Config:
    """Returns the configuration with the real port of each socket in place of port 0.

    sockets: the sockets of all addresses of the configuration, in the order of these addresses.
    """

    def listen(role: Role) -> tuple[Listen, ...]:
        return tuple(dict.fromkeys(one.address for one in sockets if one.role == role))

    mqtt = msgspec.structs.replace(config.server.mqtt, listen=listen("server.mqtt"))
    return msgspec.structs.replace(
        config,
        server=msgspec.structs.replace(config.server, listen=listen("server"), mqtt=mqtt),
        api=msgspec.structs.replace(config.api, listen=listen("api")),
        metrics=msgspec.structs.replace(config.metrics, listen=listen("metrics")),
        console=msgspec.structs.replace(config.console, listen=listen("console") or config.console.listen),
    )


def _tcp(role: Role, address: Listen, shared: bool) -> list[BoundSocket]:
    found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[BoundSocket] = []
    port = address.port
    try:
        for family, _, _, _, name in sorted(set(found)):  # IPv4 first
            try:
                bound = _bound(role, family, (name[0], port, *name[2:]), shared)
            except OSError as exc:
                if sockets and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a machine without IPv6
                raise
            port = bound.getsockname()[1]
            sockets.append(BoundSocket(role, msgspec.structs.replace(address, port=port), bound))
    except BaseException:
        for one in sockets:
            one.socket.close()
        raise
    return sockets


def _bound(role: Role, family: int, name: object, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if role == "server.mqtt":
            _keep_alive(bound)
        bound.bind(name)  # type: ignore[arg-type]  # an address from getaddrinfo or getsockname
    except BaseException:
        bound.close()
        raise
    return bound


def _keep_alive(listening: socket.socket) -> None:
    """Makes the kernel probe idle connections. An accepted connection inherits the options of the listening socket.

    An MQTT client may have no keep alive (MQTT 5.0, section 3.1.2.10). Only the kernel detects that such a client is gone.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # the second name is that of macOS
    if idle is not None:
        listening.setsockopt(socket.IPPROTO_TCP, idle, PROBE_IDLE_SECONDS)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def _unix(path: Path) -> socket.socket:
    _make_room(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        os.chmod(path, UNIX_MODE)
        bound.listen(BACKLOG)  # listens at once, so that a second server detects this server (`_make_room`)
    except BaseException:
        bound.close()
        raise
    return bound


def _make_room(path: Path) -> None:
    """Creates the folder of a Unix socket, and removes an old socket file on which no process listens.

    Raises ConfigError if a process listens on the socket file, or if the file is not a socket.
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
