"""Makes session tokens and access tokens for clients (Push1st API, sections 1 and 2)."""

import msgspec

from push1st import auth
from push1st.api.call import Call
from push1st.errors import Refused
from push1st.messages import Response


class SessionRequest(msgspec.Struct, gc=False):
    session: str
    channel: str
    data: str | None = None


class AccessRequest(msgspec.Struct, gc=False):
    """A request for an access token. `ttl` is the lifetime of the token in seconds; 0: the token never expires."""

    channel: str | list[str]
    origin: str = "*"
    ttl: int = 0


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
    now = call.node.clock.wall() // 1_000_000_000
    return _token(auth.access_token(_secret(call), call.app.config.id, wanted.origin, wanted.channel, wanted.ttl, now))


def _secret(call: Call) -> str:
    if not call.app.config.secret:
        raise Refused(403, f"app {call.app.config.id!r} has no secret, so it has no tokens")
    return call.app.config.secret


def _token(token: str) -> Response:
    return Response(200, token.encode())
