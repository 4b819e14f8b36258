"""How the hooks of an app are doing: `GET /apps/{app}/hooks`."""

from push1st.api.call import Call, answer
from push1st.messages import Response


async def listing(call: Call) -> Response:
    """Each endpoint in the configuration's order; of URLs only what is not secret."""
    call.check_reads()
    return answer({"hooks": call.node.hooks.status(call.app.config.id)})
