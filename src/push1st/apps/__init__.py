"""The port of app sources, which find apps, and the registry of its implementations."""

from collections.abc import Sequence
from typing import Protocol

from push1st.config.model import AppConfig

SOURCES = {"files": "push1st.apps.files:Files"}


class Apps(Protocol):
    """Finds apps. It finds disabled apps too, so that the server can reject their clients with the right error."""

    def by_id(self, id: str) -> AppConfig | None: ...

    def by_key(self, key: str) -> AppConfig | None: ...

    def all(self) -> Sequence[AppConfig]: ...
