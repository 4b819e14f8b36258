"""Endpoints about the server: `/health` (the process runs), `/ready` (the server accepts clients),
`/status` (the state of the server, for trusted callers).
"""

import msgspec

from push1st.core.node import Node
from push1st.errors import Refused
from push1st.messages import Request, Response


async def health(_node: Node, _request: Request) -> Response:
    return Response(200, b'{"status":"ok"}')


async def ready(node: Node, _request: Request) -> Response:
    if node.draining and not node.replaced:
        return Response(503, msgspec.json.encode({"error": "draining: this server is about to stop"}))
    return Response(200, b'{"status":"ready"}')


async def status(node: Node, request: Request) -> Response:
    if request.distrust:
        raise Refused(
            403,
            "the status is for trusted callers: an unsigned call to an API listener, from a network in api.trust; "
            f"this one is not trusted: {request.distrust}",
        )
    found = await node.status() if node.status is not None else b""
    if not found:
        raise Refused(503, "the state of the server is not available, try again")
    return Response(200, found)
