"""Configurations that a test writes."""

import pytest

from push1st.config.load import load
from push1st.errors import ConfigError


@pytest.fixture
def reading(tmp_path):
    """Loads a server.yml with this text, and an apps/N.yml with each further text."""

    def read(text="", *apps, env=None):
        (tmp_path / "apps").mkdir(exist_ok=True)
        for number, app in enumerate(apps):
            (tmp_path / "apps" / f"{number}.yml").write_text(app, encoding="utf-8")
        if apps:
            text += "\ncredentials: apps/*.yml\n"
        (tmp_path / "server.yml").write_text(text, encoding="utf-8")
        return load(tmp_path / "server.yml", env or {})

    return read


@pytest.fixture
def app(reading):
    """Returns the only app of a text."""

    def read(text, server="", env=None):
        (found,) = reading(server, text, env=env).apps
        return found

    return read


@pytest.fixture
def wrong(reading):
    """Returns the lines of the error of a configuration."""

    def read(text="", *apps, env=None):
        with pytest.raises(ConfigError) as error:
            reading(text, *apps, env=env)
        return str(error.value).split("\n")

    return read
