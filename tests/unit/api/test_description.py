"""The description of the API, as the server serves it."""

from pathlib import Path

import msgspec
import yaml

import push1st
from push1st.api import Api
from push1st.config.model import Config
from push1st.eager import resolve
from push1st.messages import Request
from tests.support.node import World

REQUEST = Request("GET", "/openapi.json", "", b"", "", 0)


async def test_description_is_the_file_as_json():
    answer = await resolve(Api(World().node, Config()).serve(REQUEST))
    text = Path(push1st.__file__).with_name("openapi.yaml").read_text()
    assert (answer.status, answer.content_type) == (200, b"application/json; charset=utf-8")
    assert msgspec.json.decode(answer.body) == yaml.safe_load(text)


async def test_description_has_the_version_of_the_server():
    answer = await resolve(Api(World().node, Config()).serve(REQUEST))
    assert msgspec.json.decode(answer.body)["info"]["version"] == push1st.__version__


def test_description_is_for_trusted_callers(caller):
    caller.trusted = False
    status, answer = caller.get("/openapi.json")
    assert status == 403
    assert answer["error"].endswith(": it is far away")
