"""`push1st app remove --purge`: deletes the stored data of a removed app in the broker, when no client uses the app any more."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import quote

import msgspec

from push1st.brokers import Purged
from push1st.brokers.redis.purge import RedisPurge
from push1st.cli.arguments import Arguments
from push1st.config.load import load
from push1st.errors import ClientError, Refused
from push1st.printable import printable
from push1st.process import rundir

WAIT_SECONDS = 30
"""the time for which the command waits for clients to leave, from the last moment at which their number became smaller"""
STEP_SECONDS = 1
"""the time between two attempts"""


def run(options: Arguments, wait: float = WAIT_SECONDS) -> int:
    """Deletes the data, and prints what was deleted; returns the exit code. Raises ConfigError and ClientError.

    wait: see `WAIT_SECONDS`.
    """
    assert options.config is not None
    config = load(Path(options.config), os.environ)
    if any(app.id == options.id for app in config.apps):
        raise ClientError(f"app {options.id} is still configured, so its data are not deleted: remove its PUSH1ST_APP variables")
    url = config.broker if config.has_broker else _engine(options.config)
    if not url:
        print(
            "there is no broker: a server with one worker keeps all data in its memory, until its process ends", file=sys.stderr
        )
        return 0
    try:
        purged = asyncio.run(_purge(url, options.id, wait))
    except Refused as refused:
        raise ClientError(f"{refused.text}. The app is removed, but not all of its data: repeat the command") from None
    if purged.in_use:
        raise ClientError(
            f"clients still use app {options.id}, so its data are not deleted: reload each server with this broker, "
            "then repeat the command"
        )
    if options.json:
        print(json.dumps({"id": options.id, **msgspec.structs.asdict(purged)}))
    else:
        counts = f"{purged.sessions} sessions, {purged.retained} retained messages, {purged.histories} histories"
        print(printable(f"purged {options.id}: {counts}"))
    return 0


async def _purge(url: str, id: str, wait: float) -> Purged:
    """Repeats the purge until no client uses the app, or until no client has left for `wait` seconds."""
    purge = RedisPurge(url)
    purged = await purge.purge(id)
    fewest, end = purged.in_use, time.monotonic() + wait
    sessions = purged.sessions
    while purged.in_use and time.monotonic() < end:
        await asyncio.sleep(STEP_SECONDS)
        purged = await purge.purge(id)
        sessions += purged.sessions
        if purged.in_use < fewest:
            fewest, end = purged.in_use, time.monotonic() + wait
    return msgspec.structs.replace(purged, sessions=sessions)


def _engine(config: str) -> str:
    """Returns the URL of the embedded engine of the running server; "" without one."""
    sockets = [folder / "engine.sock" for folder in rundir.running(config).values()]
    return next((f"unix://{quote(str(path))}" for path in sockets if path.exists()), "")
