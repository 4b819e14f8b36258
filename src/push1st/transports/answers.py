"""Encodes HTTP responses (RFC 9112). This module uses no socket, and gets the time as an argument.

Responses with status 200 and the same content type begin with the same lines. The lines contain the time, so they are
encoded again each second.
"""

from email.utils import formatdate
from http import HTTPStatus

import msgspec

from push1st.messages import Response

_STATUS = {status.value: b"HTTP/1.1 %d %b\r\nDate: " % (status.value, status.phrase.encode()) for status in HTTPStatus}
_dated = (-1, b"")
_oks: dict[bytes, tuple[int, bytes, bytes]] = {}
CLOSE = b"Connection: close\r\n"


def error(status: int, text: str, headers: bytes = b"") -> Response:
    return Response(status, msgspec.json.encode({"error": text}), headers=headers)


def keeping(seconds: int) -> bytes:
    """Returns the response headers that allow a client to leave its connection idle for `seconds` (RFC 2068 §19.7.1)."""
    return b"Connection: keep-alive\r\nKeep-Alive: timeout=%d\r\n" % seconds


def encoded(response: Response, now: float, connection: bytes, head: bool) -> bytes:
    """Encodes a whole response.

    now: the time of the sweep's newest tick, in seconds.
    connection: the encoded `Connection` header: the result of `keeping`, or the constant `CLOSE`.
    head: whether the request is a HEAD request, so that the response must have no body.
    """
    return b"%b%b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
        _STATUS[response.status],
        _date(now),
        response.content_type,
        len(response.body),
        response.headers,
        connection,
        b"" if head or response.status == 304 else response.body,
    )


def ok(now: float, content_type: bytes, connection: bytes) -> bytes:
    """Returns the first lines of a response with status 200, before the value of `Content-Length`. Parameters: see `encoded`."""
    second, start, kept = _oks.get(content_type, (-1, b"", b""))
    if second != int(now) or kept != connection:
        start = b"%b%b\r\n%bContent-Type: %b\r\nContent-Length: " % (_STATUS[200], _date(now), connection, content_type)
        _oks[content_type] = int(now), start, connection
    return start


def endless(now: float, content_type: bytes, headers: bytes) -> bytes:
    """Returns the status line and headers of a response that has no `Content-Length`, and ends when the connection ends."""
    return b"%b%b\r\nContent-Type: %b\r\n%b%b\r\n" % (_STATUS[200], _date(now), content_type, headers, CLOSE)


def _date(now: float) -> bytes:
    """Returns the value of the `Date` header (RFC 9110 §6.6.1), which is encoded once a second."""
    global _dated
    second = int(now)
    if _dated[0] != second:
        _dated = (second, formatdate(usegmt=True).encode())
    return _dated[1]
