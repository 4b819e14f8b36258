"""The two kinds of failure that a client can cause (invariant 9).

A `Refused` is sent to the client as an error, and the connection stays open. A `Disconnect` closes the connection. Any other
exception is a defect of the server: the server logs the exception's trace, and closes the connection.

A `Refused` has an HTTP status, a `Disconnect` has a WebSocket close code (RFC 6455 §7.4; Pusher protocol, section 6).
"""


class Refused(Exception):
    """A request that the server rejects with an error. The connection stays open.

    `code`: an HTTP status; a protocol that has other codes translates the status.
    `text`: the mistake and its place in the request, for the developer of the client.
    `channel`: the channel of the request; "" if the error occurred before the channel was decoded.
    """

    def __init__(self, code: int, text: str, channel: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class LimitReached(Refused):
    """A request is rejected because the app or the client has reached a limit."""


class Disconnect(Exception):
    """The server closes the connection.

    `code`: a WebSocket close code.
    `reason`: the text of the close frame, at most 123 bytes of UTF-8 (RFC 6455 §5.5).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class ConfigError(Exception):
    """The server cannot run with its configuration. Each line of the text names file, line, wrong value and allowed values."""


class ClientError(Exception):
    """A command of the command line cannot reach the server, or the server rejects the request. The command prints the text."""


class Rejected(ClientError):
    """The server rejected the request that a command of the command line sent.

    `code`: the HTTP status or the close code of the answer; 0 if the answer has none.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code
