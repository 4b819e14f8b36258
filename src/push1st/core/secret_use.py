"""Records the clients that rely on each secret of an app, while the app has several secrets.

A client relies on a secret if the secret signed the client's access token, its sign-in, or one of its subscriptions. When a
secret is retired, the worker disconnects exactly these clients. An app with one secret needs no records and no memory for them.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

C = TypeVar("C")


class SecretUse(Generic[C]):
    """The clients that rely on each secret.

    `counts`: by the place of each secret, the number of signatures and tokens that the secret has verified.
    """

    __slots__ = ("_clients", "counts")

    def __init__(self, secrets: Sequence[str], clients: Iterable[C]) -> None:
        """`secrets`: the secret of an app that had at most one; `clients`: the clients that rely on it."""
        self.counts: list[int] = []
        self._clients: dict[str, set[C]] = {secret: set(clients) for secret in secrets[:1]}
        """the clients by secret, in the order of the places"""

    def change(self, secrets: Sequence[str]) -> set[C]:
        """Applies changed secrets. Returns the clients that rely on a removed secret."""
        removed = [clients for secret, clients in self._clients.items() if secret not in secrets]
        self._clients = {secret: self._clients.get(secret, set()) for secret in secrets}
        self.counts = (self.counts + [0] * len(secrets))[: len(secrets)]
        return set().union(*removed)

    def count(self, place: int) -> None:
        """Counts a request that the secret at `place` has verified."""
        self.counts[place] += 1

    def add(self, client: C, place: int) -> None:
        """Records that a client relies on the secret at `place`, and counts this use."""
        self.counts[place] += 1
        tuple(self._clients.values())[place].add(client)

    def discard(self, client: C) -> None:
        """Removes a client whose connection has ended."""
        for clients in self._clients.values():
            clients.discard(client)
