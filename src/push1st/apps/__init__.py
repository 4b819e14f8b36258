"""Where apps come from: the port, and the registry of its implementations."""

from collections.abc import Sequence
from typing import Protocol

from push1st.config.model import AppConfig

SOURCES = {"files": "push1st.apps.files:Files"}


class Apps(Protocol):
    """Finds apps. Disabled ones are found, so that they can be refused by name."""

    def by_id(self, id: str) -> AppConfig | None: ...

    def by_key(self, key: str) -> AppConfig | None: ...

    def all(self) -> Sequence[AppConfig]: ...
