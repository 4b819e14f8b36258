"""The interface through which the server finds apps, and the registry of the app sources that implement this interface."""

from collections.abc import Sequence
from typing import Protocol

from push1st.config.model import AppConfig

SOURCES = {"files": "push1st.apps.files:Files"}


class Apps(Protocol):
    """Finds apps. An app source also returns disabled apps, so that the server can reject their clients with the right error."""

    def by_id(self, id: str) -> AppConfig | None: ...

    def by_key(self, key: str) -> AppConfig | None: ...

    def all(self) -> Sequence[AppConfig]: ...


class ChangingApps(Apps, Protocol):
    """An app source whose apps may change while the worker runs. Callers keep the source, and no result of its methods."""

    def replace(self, apps: Sequence[AppConfig]) -> None:
        """Replaces all apps at once."""
