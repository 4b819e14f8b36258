"""The argument of each endpoint, and functions that decode requests and encode answers."""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from push1st.channels import pusher_name_error, user_id_error, wide_name_error
from push1st.core.app import App
from push1st.core.node import Node
from push1st.eager import MaybeAwaitable
from push1st.errors import Refused
from push1st.jsontext import decode
from push1st.messages import Request, Response, user_channel

T = TypeVar("T")
_USER_CHANNEL = user_channel("")


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request for an app. The request has a valid signature, or comes from a trusted network.

    args: the variable segments of the path.
    signed: whether the request has a Pusher signature.
    has_params: whether the query contains parameters other than the signature's.
    """

    node: Node
    app: App
    request: Request
    args: tuple[str, ...]
    signed: bool
    has_params: bool

    def body(self, decoder: msgspec.json.Decoder[T]) -> T:
        """Decodes the request's body, without its byte order mark. Raises Refused(400) if the decoder rejects the body."""
        body = self.request.body
        if not body.isascii():
            try:
                body.decode()  # the decoder does not check the encoding within a `msgspec.Raw`
            except UnicodeDecodeError as exc:
                raise Refused(400, f"the body is not UTF-8: {exc.reason} at byte {exc.start}") from exc
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return self.decode(decoder, body.removeprefix(BOM_UTF8))  # RFC 8259 §8.1

    def decode(self, decoder: msgspec.json.Decoder[T], text: bytes) -> T:
        """Decodes a JSON text of a request. Raises Refused(400) if the decoder rejects the text."""
        try:
            return decode(decoder, text)
        except msgspec.ValidationError as exc:
            raise Refused(400, f"the body has a missing or mistyped field: {exc}") from exc
        except (msgspec.DecodeError, RecursionError) as exc:
            raise Refused(400, f"the body is not JSON: {exc}") from exc

    def params(self) -> dict[str, str]:
        """Returns the parameters of the query. The names are in lower case, because the client signs lower-case names."""
        return {name.lower(): value for name, value in parse_qsl(self.request.query, keep_blank_values=True)}

    def param_list(self, name: str) -> list[str]:
        """Returns all values of a parameter that may occur several times in the query."""
        return [value for key, value in parse_qsl(self.request.query, keep_blank_values=True) if key.lower() == name]

    def check_channel_name(self, name: str) -> None:
        """Raises Refused(400) for an invalid channel name. The rules are stricter for signed requests than for unsigned
        ones (Push1st API, section 7).

        Of the names that begin with `#`, a backend may use only `#server-to-user-ID`, the channel for events to one signed-in
        user. All other names that begin with `#` are internal.
        """
        if name[:1] == "#":
            if not name.startswith(_USER_CHANNEL):
                raise Refused(400, "channel names that begin with # are reserved")
            exc = user_id_error(name.removeprefix(_USER_CHANNEL))
        elif self.signed:
            exc = pusher_name_error(name, self.app.config.limits.channel_name)
        else:
            exc = wide_name_error(name)
        if exc:
            raise Refused(400, exc)

    def check_reads(self) -> None:
        """Raises Refused(429) if the app has exceeded its limit of reads."""
        most = self.app.config.limits.reads
        if most and not self.app.reads.take(self.node.clock.monotonic()):
            raise Refused(429, f"more than {most} reads a second")


Answer = MaybeAwaitable[Response]
Endpoint = Callable[[Call], Answer]


def answer(value: object, headers: bytes = b"") -> Response:
    """Returns the answer to a successful call. `headers`: see `Response`."""
    return Response(200, msgspec.json.encode(value), headers=headers)


def wrong_method(method: str, allowed: Iterable[str]) -> Response:
    """Returns the answer to a request whose path exists, but has no such method. `allowed`: the methods of the path."""
    names = ", ".join(sorted(allowed))
    status = HTTPStatus.METHOD_NOT_ALLOWED
    return error(status, f"{method} is not allowed here, {names} is", f"Allow: {names}\r\n".encode())


def error(status: int, text: str, headers: bytes = b"") -> Response:
    return Response(status, msgspec.json.encode({"error": text}), headers=headers)
