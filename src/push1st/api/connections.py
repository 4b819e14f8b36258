"""Serves `GET /apps/{app}/connections`, which Reverb has too: Laravel Pulse shows the number of connections."""

from push1st.api.call import Call, answer
from push1st.messages import Response


async def count(call: Call) -> Response:
    call.check_reads()
    return answer({"connections": await call.node.controller.connections(call.app)})
