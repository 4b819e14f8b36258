"""Makes session tokens and access tokens for clients (Push1st API, sections 1 and 2)."""

import msgspec

from push1st import auth
from push1st.api.call import Call
from push1st.channels import user_id_error
from push1st.errors import Refused
from push1st.messages import Response


class SessionRequest(msgspec.Struct, gc=False):
    session: str
    channel: str
    data: str | None = None


class AccessRequest(msgspec.Struct, gc=False):
    """A request for an access token.

    ttl: the lifetime of the token in seconds; 0: the token never expires.
    user: the id of the user that the token names; None: the token names no user. The server signs in MQTT clients as this user.
    """

    channel: str | list[str]
    origin: str = "*"
    ttl: int = 0
    user: str | None = None


_session = msgspec.json.Decoder(SessionRequest)
_access = msgspec.json.Decoder(AccessRequest)
MAX_TTL = 10 * 366 * 86_400


async def session(call: Call) -> Response:
    wanted = call.body(_session)
    return _token(auth.session_token(_secret(call), wanted.session, wanted.channel, wanted.data or ""))


async def access(call: Call) -> Response:
    wanted = call.body(_access)
    if not 0 <= wanted.ttl <= MAX_TTL:
        raise Refused(400, f"ttl {wanted.ttl} is out of range, allowed are 0 (never expires) to {MAX_TTL} seconds")
    if wanted.user is not None and (error := user_id_error(wanted.user)):
        raise Refused(400, error)
    now = call.node.clock.wall() // 1_000_000_000
    app = call.app.config.id
    return _token(auth.access_token(_secret(call), app, wanted.origin, wanted.channel, wanted.ttl, now, wanted.user))


def _secret(call: Call) -> str:
    if not call.app.config.secret:
        raise Refused(403, f"app {call.app.config.id!r} has no secret, so it has no tokens")
    return call.app.config.secret


def _token(token: str) -> Response:
    return Response(200, token.encode())
