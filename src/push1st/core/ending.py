"""Ends connections slowly, so that their clients do not all reconnect, and request new tokens, at the same time.

All connections of a worker that end for a change of the configuration wait in one queue, whichever app they belong to.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from push1st import logs
from push1st.channels import kind_of
from push1st.core.app import App, Client
from push1st.metrics import Metrics

MAX_ENDED = 50
"""the maximum number of connections that end in one turn of the event loop"""
MAX_EXAMINED = 1000
"""the maximum number of connections that are examined in one turn of the event loop"""
PAUSE_SECONDS = 0.1
"""the time between two groups of connections that end"""
RETIRED = "the secret that signed the token or the sign-in of this connection is retired: reconnect with a new one"

log = logs.get("push1st.server")


async def pause() -> None:
    await asyncio.sleep(PAUSE_SECONDS)


class EndQueue:
    """The queue of a worker's connections that end: at most `MAX_ENDED` connections end between two pauses.

    `pause`: a function that waits `PAUSE_SECONDS`.
    """

    def __init__(self, pause: Callable[[], Awaitable[None]] = pause) -> None:
        self._pause = pause
        self._turn = asyncio.Lock()
        """the lock of the coroutine whose connections are ending; the other coroutines wait in their order"""
        self._ended = self._examined = 0
        """the numbers of connections that have ended and that were examined since the last pause"""

    async def end(self, clients: Iterable[Client], end: Callable[[Client], bool]) -> None:
        """Ends connections, beginning with the next turn of the event loop. If a connection fails to end, the others still end.

        `end`: a function that ends the connection of a client, or returns false if the connection may stay or has ended.
        """
        clients = list(clients)
        await asyncio.sleep(0)
        async with self._turn:
            for client in clients:
                if self._ended == MAX_ENDED or self._examined == MAX_EXAMINED:
                    await (self._pause() if self._ended else asyncio.sleep(0))
                    self._ended = self._examined = 0
                self._examined += 1
                try:
                    self._ended += not client.closed and end(client)
                except Exception:  # a defect that concerns one connection
                    log.exception("internal error", where="ending")


async def end_unverified(ending: EndQueue, app: App, clients: Iterable[Client], metrics: Metrics) -> None:
    """Ends the connections of clients that rely on a retired secret. `clients`: the clients that `App.configure` has returned."""

    def end(client: Client) -> bool:
        if not _relies_on_secret(app, client):
            return False
        metrics.cut_offs["secret-retired"] += 1
        # A Pusher client reconnects at once after 4200, and its backend then signs with a valid secret. A client with a token
        # needs a new token first.
        client.disconnect(4200 if client.claims is None else 4009, RETIRED)
        return True

    await ending.end(clients, end)


def _relies_on_secret(app: App, client: Client) -> bool:
    """Whether a client may rely on a secret. Returns false if the app's backend has authorised all its subscriptions.

    An app with one secret does not record which of its authorised clients have presented a signature (`SecretUse`).
    """
    decides = app.backend_decides.get("subscribe")
    if decides is None or client.claims is not None or client.user is not None or not client.subscriptions:
        return True
    return any(kind_of(name).needs_auth and not decides(name) for name in client.subscriptions)
