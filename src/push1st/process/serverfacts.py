"""The facts about a server that its first process knows without its workers, for `push1st status`."""

import os
import time

from push1st.config.model import Config
from push1st.process.sockets import ROLES, addresses, tls_settings, uses_tls
from push1st.status import ListenerSummary, ReloadStatus, ServerFacts


def facts(config: Config, began: float, starting: bool, reload: ReloadStatus | None) -> ServerFacts:
    """Returns the facts.

    config: the configuration with the real ports.
    began: the time of the start on the monotonic clock, in seconds.
    starting: whether the start of the server has not ended.
    reload: the last reload; None if there was none.
    """
    listeners = [
        ListenerSummary(role, str(address), tls_settings(config, role) is not None and uses_tls(role, address))
        for role in ROLES
        for address in addresses(config, role)
    ]
    file = config.files[0] if config.files else ""
    return ServerFacts(time.time(), file, os.getpid(), time.monotonic() - began, starting, listeners, reload)
