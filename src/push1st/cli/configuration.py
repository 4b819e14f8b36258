"""Reads the configuration that a command uses, and formats its addresses for people."""

import os
import sys
from pathlib import Path

from push1st.config.addresses import Listen
from push1st.config.load import demo, load
from push1st.config.model import Config

DEMO_URL = "ws://127.0.0.1:6001"
DEMO_API = "http://127.0.0.1:6002"
ENVIRONMENT = "the environment"
"""the name that the log and `check` show for the source of a configuration without a file"""


def load_or_demo(file: str | None) -> Config:
    """Returns the configuration from a file, or else the demo; the environment overrides both. Raises ConfigError."""
    return load(Path(file), os.environ) if file else demo(os.environ)


def url(address: Listen, scheme: str) -> str:
    """Returns an address as a URL. `scheme` is the scheme for a TCP address, such as ws."""
    if address.scheme == "unix":
        return str(address)
    host = address.host or "*"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def listening(config: Config) -> list[str]:
    """Returns a line for each address, with its protocols, and with the networks that may send unsigned API requests."""
    *others, last = sorted(config.server.proto & {"pusher", "websocket", "mqtt"}) or [""]
    websockets = f"{', '.join(others)} and {last}" if others else last
    streams = ["server-sent events"] if "sse" in config.server.proto else []
    served = ", ".join([*([f"WebSockets ({websockets})"] if websockets else []), *streams])
    scheme = ("ws" if websockets else "http") + ("s" if config.server.ssl.enable else "")
    calls = f"{served} and signed API calls" if served else "signed API calls"
    lines = [f"{calls} on {url(address, scheme)}" for address in config.server.listen]
    also = " and ".join([*(["WebSockets"] if websockets else []), *streams])
    scheme = "https" if config.api.ssl.enable else "http"
    trusted = ", ".join(str(net) for net in config.api.trust.nets) + (", unix" if config.api.trust.unix else "")
    access = f"{config.api.path}, unsigned calls from {trusted or 'nobody'}" + (f"; {also} too" if also else "")
    lines += [f"API on {url(address, scheme)}{access}" for address in config.api.listen]
    callers = "callers with metrics.token" if config.metrics.token else "all callers"
    lines += [f"metrics on {url(address, 'http')}/metrics, for {callers}" for address in config.metrics.listen]
    scheme = "https" if config.console.ssl.enable else "http"
    lines += [f"console on {url(address, scheme)}" for address in config.console.listens]
    return lines + [f"MQTT on {url(address, address.scheme)}" for address in config.server.mqtt_listen]


def program() -> str:
    """Returns the name or path of the `push1st` program, for commands that a user can copy."""
    return "push1st" if "/" not in sys.argv[0] or sys.argv[0].endswith(".py") else sys.argv[0]
