"""Lines about a configuration, for `push1st check` and the console: what apps keep, and settings that an operator may not expect.

Pure: nothing here needs the user, the machine or the network. `push1st check` adds what depends on them.
"""

from push1st.config.model import Config
from push1st.notes import mqtt, retention


def notes(config: Config) -> list[str]:
    """Returns the notes about the histories of apps, and about MQTT."""
    return [*retention.notes(config), *mqtt.notes(config)]
