"""The two kinds of failure a client can cause (invariant 9).

`Refused` is answered and the client stays; `Disconnect` ends the connection. Anything else that is raised while a
client is served is our own defect: it is logged with its trace and closes that one connection.

Refusals carry HTTP status codes, ends of connections WebSocket close codes (RFC 6455 §7.4; Pusher protocol, section 6).
"""


class Refused(Exception):
    """A request that is answered with an error; the connection stays.

    code: an HTTP status; a protocol with codes of its own translates it.
    text: what is wrong and where, for the person who wrote the client.
    channel: the channel that the request names, if that was decoded before the error.
    """

    def __init__(self, code: int, text: str, channel: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class LimitReached(Refused):
    """A limit of the app, or of what the client may hold, is used up."""


class Disconnect(Exception):
    """The connection ends with a WebSocket close code and a reason of at most 123 bytes of UTF-8 (RFC 6455 §5.5)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class ConfigError(Exception):
    """A configuration that cannot run: file, place, what was found, what is allowed."""


class ClientError(Exception):
    """What went wrong when a command called a server, for a person."""


class Rejected(ClientError):
    """A server rejected what a command requested."""
