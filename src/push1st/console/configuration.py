"""The effective configuration: each key with its origin, warnings, listeners, certificates and the last reload."""

from collections.abc import Sequence
from typing import Any

import msgspec

from push1st.config.model import Config, all_warnings, strictness
from push1st.config.settings import settings
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.notes import notes
from push1st.status import CertificateSummary, ListenerSummary, ReloadStatus

MAX_TEXTS = 100
"""the maximum number of texts in a list; a configuration may have thousands of apps with a note each"""
MAX_CHARACTERS = 1000
"""the maximum length of a text; a text may contain long values of the configuration"""


class ServerState(msgspec.Struct, frozen=True):
    """The facts about the server of this machine (`ServerStatus`). The default values stand for facts that are not known yet."""

    config: str = ""
    listeners: list[ListenerSummary] = []
    certificates: list[CertificateSummary] = []
    reload: ReloadStatus | None = None


_state = msgspec.json.Decoder(ServerState)


class Configuration:
    """The endpoint `config`. It shows the configuration of the worker that answers; secrets are lengths only."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._texts: tuple[Config | None, dict[str, Any]] = None, {}
        """the settings and texts, and the configuration from which they are made"""
        self.endpoints = (ConsoleEndpoint("GET", "config", self._show),)

    async def _show(self, _call: ConsoleCall) -> dict[str, Any]:
        config = self._context.config()
        status = self._context.node.status
        found = await status() if status is not None else b""
        state = _state.decode(found) if found else ServerState()
        if self._texts[0] is not config:  # with 10,000 apps, this takes 0.2 s
            self._texts = (
                config,
                {
                    "settings": settings(config),
                    "warnings": bounded(all_warnings(config)),
                    "notes": bounded([*notes(config), *strictness(config)]),
                },
            )
        return {
            **self._texts[1],
            "file": state.config,
            "listeners": state.listeners,
            "certificates": state.certificates,
            "reload": state.reload,
        }


def bounded(texts: Sequence[str]) -> list[str]:
    """Returns the first texts, of which long ones lose their middle; the last text counts those that are left out."""
    half = MAX_CHARACTERS // 2
    found = [text if len(text) <= MAX_CHARACTERS else _shortened(text, half) for text in texts[:MAX_TEXTS]]
    if len(texts) > MAX_TEXTS:
        found.append(f"{len(texts) - MAX_TEXTS} more: push1st check prints all of them")
    return found


def _shortened(text: str, half: int) -> str:
    """Returns a text without its middle, cut between words."""
    head, tail = text[:half], text[-half:]
    return f"{head.rpartition(' ')[0] or head} … {tail.partition(' ')[2] or tail}"
