"""Serves `GET /openapi.json`: the description of this API, which is the file `openapi.yaml` of the package (OpenAPI 3.1).

The addresses and the paths of the file are those of the demo. The server answers with its own.
"""

import asyncio
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
import yaml

from push1st.config.model import Config
from push1st.core.node import Node
from push1st.errors import Refused
from push1st.messages import Request, Response

HERE = ("/",)
"""stands for the address from which the caller has the description"""
_APPS = "/apps/"
"""the beginning of the paths about an app in the file"""


async def openapi(_node: Node, request: Request, path: str = _APPS) -> Response:
    """Serves the description. path: the beginning of the paths about an app (`api.path`)."""
    if request.distrust:
        raise Refused(
            403,
            "the API's description is for trusted callers: an unsigned call to an API listener, from a network in api.trust; "
            f"this one is not trusted: {request.distrust}",
        )
    return await described(HERE, path)


async def described(urls: tuple[str, ...], path: str) -> Response:
    """Returns the description. urls: the addresses of the API. path: the beginning of the paths about an app."""
    # measured: 27 ms with libyaml, 160 ms without
    return Response(200, await asyncio.to_thread(_description, urls, path))


def addresses(config: Config) -> tuple[str, ...]:
    """Returns the URLs of the API: of the TCP addresses of `api.listen`, and then of `server.listen`, seen from this machine."""
    found: list[str] = []
    for part in (config.api, config.server):
        for one in part.listen:
            if one.scheme == "tcp":
                url = str(one if one.host else msgspec.structs.replace(one, host="127.0.0.1"))
                found.append(url.replace("tcp:", "https:" if part.ssl.enable else "http:"))
    return tuple(found)


@cache
def _description(urls: tuple[str, ...], path: str) -> bytes:
    text = files("push1st").joinpath("openapi.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    servers = [{"url": url} for url in urls]
    paths = {path + one.removeprefix(_APPS) if one.startswith(_APPS) else one: item for one, item in found["paths"].items()}
    return msgspec.json.encode(found | {"servers": servers, "paths": paths})
