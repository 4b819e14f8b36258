"""The endpoint `api/version`: the version of the server, and whether the broker is away. Each tab calls it every few seconds."""

import push1st
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint


class Version:
    """The version of the server and the worker that answers."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self.endpoints = (ConsoleEndpoint("GET", "version", self._version),)

    def _version(self, _call: ConsoleCall) -> object:
        return {
            "version": push1st.__version__,
            "worker": self._context.number,
            "demo": self._context.config().demo,
            "away": self._context.wire.peers().away,
        }
