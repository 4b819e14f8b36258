"""Finds apps in the configuration files."""

from collections.abc import Sequence

from push1st.config.model import AppConfig


class Files:
    """The app source for the apps in the configuration files."""

    def __init__(self, apps: Sequence[AppConfig]) -> None:
        self.replace(apps)

    def replace(self, apps: Sequence[AppConfig]) -> None:
        """Replaces all apps, after the configuration files have changed."""
        self._apps = tuple(apps)
        self._by_id = {app.id: app for app in apps}
        self._by_key = {app.key: app for app in apps}

    def by_id(self, id: str) -> AppConfig | None:
        return self._by_id.get(id)

    def by_key(self, key: str) -> AppConfig | None:
        return self._by_key.get(key)

    def all(self) -> Sequence[AppConfig]:
        return self._apps
