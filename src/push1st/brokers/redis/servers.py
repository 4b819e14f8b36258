"""Finds the server that holds a shard, connects and logs in to this server, and loads the scripts.

A broker URL contains the address of the server itself, the addresses of Sentinels, or addresses of servers of a Redis cluster. A
Sentinel returns the address of the master. A server of a cluster returns the address of the master that holds a slot. The found
server must also report that it is a master, because the returned address may be out of date after a failover.
"""

import asyncio
import binascii
import re
import ssl
from collections.abc import Callable
from typing import Any

import hiredis

from push1st.brokers.redis.resp import Argument, ConnectionLost, OnPush, RespConnection
from push1st.brokers.redis.scripts import CLUSTER_SHARDS, SCRIPTS
from push1st.config.brokerurl import Address
from push1st.eager import timeout

CONNECT_SECONDS = 5
"""the seconds within which `connect` must find the server, connect to it, and load the scripts"""
SLOTS = 16384


class Unusable(Exception):
    """A server cannot be used, although it may accept connections. The error's text is the server's reply or another reason."""


def slot_of(tag: str) -> int:
    """Returns the slot of the keys with this hash tag (Redis cluster specification)."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


def tags(address: Address) -> list[str]:
    """Returns the hash tags of the shards: one tag, or for a cluster several tags, whose slots are evenly spread."""
    if address.how != "cluster":
        return ["0"]
    found: dict[int, str] = {}
    number = 0
    while len(found) < CLUSTER_SHARDS:
        found.setdefault(slot_of(str(number)) * CLUSTER_SHARDS // SLOTS, str(number))
        number += 1
    return [found[part] for part in range(CLUSTER_SHARDS)]


async def connect(address: Address, tag: str, name: str, on_push: OnPush, lost: Callable[[], None]) -> RespConnection:
    """Returns a connection to the master that holds the shard, with all scripts loaded.

    Raises OSError, TimeoutError, Unusable or ConnectionLost.
    """
    async with timeout(CONNECT_SECONDS):
        if address.how == "sentinel":
            host, port = await _master(address)
        elif address.how == "cluster":
            host, port = await _holder(address, slot_of(tag))
        else:
            host, port = address.hosts[0] if address.hosts else ("", 0)
        resp = await _open(address, host, port, on_push, lost)
        try:
            await _prepare(resp, address, name)
        except BaseException:
            resp.abort()
            raise
        return resp


async def _open(address: Address, host: str, port: int, on_push: OnPush, lost: Callable[[], None]) -> RespConnection:
    loop = asyncio.get_running_loop()
    resp = RespConnection(on_push, lost)
    if address.path:
        await loop.create_unix_connection(lambda: resp, address.path)
    else:
        context = ssl.create_default_context() if address.tls else None
        try:
            await loop.create_connection(lambda: resp, host, port, ssl=context)
        except UnicodeError as exc:
            raise Unusable(f"{host!r} is not a host name: {exc}") from None
    return resp


async def _hello(resp: RespConnection, address: Address, name: str, *, password: bool = True) -> dict[bytes, Any]:
    command: list[Argument] = ["HELLO", "3"]
    if password and (address.user or address.password):
        command += ["AUTH", address.user or "default", address.password]
    found = await _ask(resp, *command, "SETNAME", name)
    return found if isinstance(found, dict) else {}


async def _prepare(resp: RespConnection, address: Address, name: str) -> None:
    about = await _hello(resp, address, name)
    if address.database:
        await _ask(resp, "SELECT", address.database)
    if about.get(b"role", b"master") != b"master":
        raise Unusable("this server is a replica, not a master")
    info = resp.call("INFO", "server")
    resp.run_id = await _run_id(info)
    await _load_scripts(resp, sharded=address.how == "cluster")


async def _load_scripts(resp: RespConnection, *, sharded: bool) -> None:
    """Loads the scripts that the server lacks. All shards and nodes share them, so most connections load none."""
    scripts = {one.sharded_digest: one.sharded for one in SCRIPTS} if sharded else {one.digest: one.text for one in SCRIPTS}
    there = await _ask(resp, "SCRIPT", "EXISTS", *scripts)
    for loading in [resp.call("SCRIPT", "LOAD", text) for text, known in zip(scripts.values(), there, strict=True) if not known]:
        await _reply(loading)


async def _run_id(info: "asyncio.Future[Any]") -> str:
    """Returns the id of this run of the server process from the reply of INFO; "" if an access control list forbids INFO."""
    try:
        found = re.search(rb"run_id:(\w+)", await info)
    except hiredis.ReplyError:
        return ""
    return found[1].decode() if found else ""


async def _reply(future: "asyncio.Future[Any]") -> Any:
    try:
        return await future
    except hiredis.ReplyError as exc:
        raise Unusable(str(exc)) from None


async def _ask(resp: RespConnection, *command: Argument) -> Any:
    return await _reply(resp.call(*command))


async def _first(address: Address, ask: Callable[[RespConnection], Any]) -> Any:
    """Queries the hosts in order, and returns the first usable reply. The function `ask` sends the query on a connection."""
    exc: Exception = Unusable("no host is given")
    for host, port in address.hosts:
        try:
            resp = await _open(address, host, port, lambda _: None, lambda: None)
        except (OSError, Unusable) as failure:
            exc = failure
            continue
        try:
            found = await ask(resp)
            if found is not None:
                return found
            exc = Unusable(f"{host}:{port} has no address for the master")
        except (Unusable, ConnectionLost) as failure:
            exc = failure
        finally:
            resp.abort()
    raise exc


async def _master(address: Address) -> tuple[str, int]:
    """Returns the address of the master according to Sentinel."""

    async def ask(resp: RespConnection) -> tuple[str, int] | None:
        await _hello(resp, address, "push1st", password=False)
        found = await _ask(resp, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master)
        return (found[0].decode(), int(found[1])) if found else None

    host, port = await _first(address, ask)
    return host, port


async def _holder(address: Address, slot: int) -> tuple[str, int]:
    """Returns the address of the master that holds a slot, according to the cluster."""

    async def ask(resp: RespConnection) -> tuple[str, int] | None:
        await _hello(resp, address, "push1st")
        for first, last, master, *_ in await _ask(resp, "CLUSTER", "SLOTS"):
            if first <= slot <= last and master[0]:
                return master[0].decode(), int(master[1])
        return None

    host, port = await _first(address, ask)
    return host, port
