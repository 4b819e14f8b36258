"""The description of the API, as the server serves it."""

from pathlib import Path

import msgspec
import yaml

import push1st
from push1st.api import Api
from push1st.api.description import addresses
from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, Config, ServerConfig, Ssl
from push1st.eager import resolve
from push1st.messages import Request
from tests.support.node import World

REQUEST = Request("GET", "/openapi.json", "", b"", "", 0)


async def test_description_is_the_file_as_json():
    answer = await resolve(Api(World().node, Config()).serve(REQUEST))
    text = Path(push1st.__file__).with_name("openapi.yaml").read_text()
    assert (answer.status, answer.content_type) == (200, b"application/json; charset=utf-8")
    found, expected = msgspec.json.decode(answer.body), yaml.safe_load(text)
    assert found.pop("servers") == [{"url": "/"}]
    assert expected.pop("servers")[0]["url"] == "http://127.0.0.1:6002"
    assert found == expected


async def test_description_has_the_paths_of_the_server():
    answer = await resolve(Api(World().node, Config(api=ApiConfig(path="/realtime/v1/"))).serve(REQUEST))
    own = msgspec.json.decode(answer.body)["paths"]
    default = await resolve(Api(World().node, Config()).serve(REQUEST))
    paths = msgspec.json.decode(default.body)["paths"]
    assert {path for path in own if "{app_id}" in path} == {"/realtime/v1" + path[5:] for path in paths if "{app_id}" in path}
    assert {path for path in own if "{app_id}" not in path} == {path for path in paths if "{app_id}" not in path}
    assert own["/realtime/v1/{app_id}/events"] == paths["/apps/{app_id}/events"]


def test_console_names_the_addresses_of_the_api():
    api = (Listen("tcp", port=1), Listen("unix", path="/a"), Listen("tcp", "::1", 2))
    server = ServerConfig(listen=(Listen("tcp", "192.0.2.1", 3),), ssl=Ssl(enable=True))
    config = Config(api=ApiConfig(listen=api), server=server)
    assert addresses(config) == ("http://127.0.0.1:1", "http://[::1]:2", "https://192.0.2.1:3")


async def test_description_has_the_version_of_the_server():
    answer = await resolve(Api(World().node, Config()).serve(REQUEST))
    assert msgspec.json.decode(answer.body)["info"]["version"] == push1st.__version__


def test_description_is_for_trusted_callers(caller):
    caller.trusted = False
    status, answer = caller.get("/openapi.json")
    assert status == 403
    assert answer["error"].endswith(": it is far away")
