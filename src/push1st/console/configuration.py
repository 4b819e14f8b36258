"""The effective configuration: each key with its origin, warnings, listeners, certificates and the last reload."""

from typing import Any

import msgspec

from push1st.config.model import strictness
from push1st.config.settings import settings
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.notes import notes
from push1st.status import CertificateSummary, ListenerSummary, ReloadStatus


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
        self.endpoints = (ConsoleEndpoint("GET", "config", self._show),)

    async def _show(self, _call: ConsoleCall) -> dict[str, Any]:
        config = self._context.config()
        status = self._context.node.status
        found = await status() if status is not None else b""
        state = _state.decode(found) if found else ServerState()
        return {
            "file": state.config,
            "settings": settings(config),
            "warnings": config.warnings,
            "notes": notes(config),
            "strictness": strictness(config),
            "listeners": state.listeners,
            "certificates": state.certificates,
            "reload": state.reload,
        }
