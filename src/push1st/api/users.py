"""Serves `POST /apps/{app}/users/{user}/terminate_connections` (Pusher protocol, sections 5 and 9)."""

from push1st.api.call import Call
from push1st.errors import Refused
from push1st.messages import Response


async def terminate(call: Call) -> Response:
    """Disconnects all connections of a signed-in user. A user who is only a member of a presence channel is not signed in."""
    if call.request.body.strip() not in (b"", b"{}"):
        raise Refused(400, "the body must be empty or {}")
    (user_id,) = call.args
    await call.node.terminate(call.app, user_id)
    return Response(200, b"{}")
