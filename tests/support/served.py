"""An API that records its requests, in place of the real one."""

import asyncio
import re

from push1st.errors import Refused
from push1st.messages import Request, Response
from tests.support.loop import turns


class Served:
    """Requests that reached the API. Requests with paths below /wait/ wait for `answer`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting: dict[str, asyncio.Future[Response]] = {}

    async def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        if request.path.startswith("/wait/"):
            self.waiting[request.path] = asyncio.get_running_loop().create_future()
            return await self.waiting[request.path]
        if request.path.startswith("/refused"):
            raise Refused(403, "no")
        if request.path.startswith("/broken"):
            raise ValueError("a secret of ours")
        return Response(200, request.path.encode() + b" " + request.body)

    @property
    def last(self) -> Request:
        return self.requests[-1]

    async def answer(self, path: str, status: int = 200) -> None:
        self.waiting.pop(path).set_result(Response(status, path.encode()))
        await turns()


def undated(data: bytes) -> bytes:
    """Returns responses without their dates."""
    return re.sub(rb"Date: [^\r]+", b"Date: -", data)
