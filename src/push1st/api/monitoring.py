"""The calls of monitoring programs: who may read the metrics, and the API of the addresses of `metrics.listen`.

A monitoring program needs the metrics, but must not publish. So it calls an address of `metrics.listen`, which serves only the
paths in `PATHS`, or it sends the token of `metrics.token`.
"""

import re
from typing import Final

import msgspec

from push1st import auth
from push1st.api import metrics, server
from push1st.api.call import Answer, wrong_method
from push1st.config.model import Config
from push1st.core.node import Node
from push1st.errors import Refused
from push1st.limits import Bucket
from push1st.messages import Request

PATHS: Final = {
    "/health": server.health,
    "/ready": server.ready,
    "/up": server.ready,
    "/accept-traffic": server.ready,
    "/metrics": metrics.metrics,
}
MAX_SCRAPES: Final = 10
"""the maximum number of requests for the metrics in a second without a token; all workers work for each of them"""
_SLASHES = re.compile("/{2,}")


def with_token(request: Request, token: str) -> Request:
    """Returns a request for the metrics; a request with the token of `metrics.token` becomes a trusted one.

    token: the token; "" if none is configured.
    """
    return trusted(request) if has_token(request, token) else request


def has_token(request: Request, token: str) -> bool:
    return request.headers is not None and auth.check_bearer(token, request.headers.get(b"authorization"))


def trusted(request: Request) -> Request:
    return msgspec.structs.replace(request, distrust="")


class MetricsApi:
    """The API of an address of `metrics.listen`. With `metrics.token`, only callers with this token get the metrics."""

    def __init__(self, node: Node, config: Config) -> None:
        self._node = node
        self._token = config.metrics.token
        self._scrapes = Bucket(MAX_SCRAPES, node.clock.monotonic())

    def serve(self, request: Request) -> Answer:
        """Serves a request. Raises Refused if the request is rejected; a returned coroutine may also raise Refused."""
        path = _SLASHES.sub("/", request.path).rstrip("/")
        endpoint = PATHS.get(path)
        if endpoint is None:
            raise Refused(404, f"metrics.listen serves only {', '.join(PATHS)}, and nothing is at {request.path[:200]}")
        if request.method not in ("GET", "HEAD"):
            return self._refuse(request)
        if endpoint is metrics.metrics and self._token:
            if not has_token(request, self._token):
                raise Refused(401, "the metrics of metrics.listen need the header Authorization: Bearer with metrics.token")
            request = trusted(request)
        elif endpoint is metrics.metrics and not request.distrust and not self._scrapes.take(self._node.clock.monotonic()):
            raise Refused(429, f"metrics.listen answers at most {MAX_SCRAPES} requests for the metrics a second without a token")
        return endpoint(self._node, request)

    def _refuse(self, request: Request) -> Answer:
        response = wrong_method(request.method, ("GET",))
        self._node.refusals.log_answer("request refused", response, method=request.method, path=request.path)
        return response
