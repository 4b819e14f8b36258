"""The two kinds of failure that a client can cause (invariant 9).

A `Refused` is sent to the client as an error, and its connection stays open. A `Disconnect` closes the connection. Any other
exception is a defect of the server: it is logged with its trace, and closes that one connection.

A `Refused` has an HTTP status, a `Disconnect` has a WebSocket close code (RFC 6455 §7.4; Pusher protocol, section 6).
"""


class Refused(Exception):
    """A request that the server rejects with an error. The connection stays open.

    code: an HTTP status; a protocol with its own codes translates it.
    text: the mistake and its place, for the developer of the client.
    channel: the channel of the request, if it was decoded before the error.
    """

    def __init__(self, code: int, text: str, channel: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class LimitReached(Refused):
    """The app or the client has reached a limit."""


class Disconnect(Exception):
    """The server closes the connection.

    code: a WebSocket close code.
    reason: at most 123 bytes of UTF-8 (RFC 6455 §5.5).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class ConfigError(Exception):
    """The server cannot run with its configuration. Each line has file and line, what was found, and what is allowed."""


class ClientError(Exception):
    """A command could not use a server. The text is for a person."""


class Rejected(ClientError):
    """A server rejected the request of a command."""
