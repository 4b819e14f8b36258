"""The callers and the paths of the API (Push1st API, sections 5 and 6)."""

import pytest

from push1st.api import ROUTES, Api
from push1st.apps.files import Files
from push1st.config.model import ApiConfig, Config, ServerConfig
from push1st.messages import Request
from tests.support.http import signed
from tests.support.node import APP, app_config

CALLS = [
    ("POST", "events", {"name": "e", "channel": "c", "data": "x"}),
    ("GET", "channels", b""),
    ("GET", "channels/c", b""),
    ("POST", "token/session", {"session": "1.2", "channel": "private-c"}),
    ("POST", "token/access", {"channel": "*"}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_an_unsigned_call_from_a_trusted_address_is_served(caller, method, path, body):
    assert caller.call(method, path, body)[0] in (200, 404)


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_an_unsigned_call_from_elsewhere_is_401(caller, method, path, body):
    caller.trusted = False
    status, answer = caller.call(method, path, body)
    assert status == 401
    assert "must be signed" in answer["error"]
    assert answer["error"].endswith(": it is far away")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_signed_call_is_served_from_anywhere(caller, method, path, body, trusted):
    caller.trusted = trusted
    assert caller.call(method, path, body, key=True)[0] == 200


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_trailing_slash_is_optional(caller, method, path, body):
    for key in (False, True):
        assert caller.call(method, path + "/", body, key=key)[0] == caller.call(method, path, body, key=key)[0]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize("base", ["//apps/{}/", "/apps//{}/", "/apps/{}//", "///apps//{}///"])
def test_several_slashes_count_as_one(caller, method, path, body, base):
    doubled = base.format(APP) + path.replace("/", "//") + "//"
    for key in (False, True):
        assert caller.call(method, doubled, body, key=key)[0] == caller.call(method, path, body, key=key)[0]


def test_several_slashes_count_as_one_for_the_server_too(caller):
    assert caller.get("//health")[0] == caller.get("/health")[0] == 200


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_an_unknown_app_is_404(caller, method, path, body):
    """The libraries for Java and Ruby have a case for 401; the library for Java reads 403 as an exhausted quota."""
    for key in (False, True):
        status, answer = caller.call(method, f"/apps/unknown/{path}", body, key=key)
        assert (status, answer) == (404, {"error": "there is no app 'unknown'"})


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_disabled_app_is_403(calling, method, path, body):
    caller = calling(app_config(enable=False))
    for key in (False, True):
        assert caller.call(method, path, body, key=key)[0] == 403


def test_rejected_caller_does_not_learn_which_apps_exist(caller):
    caller.trusted = False
    assert caller.get("/apps/unknown/channels") == caller.get("channels")


# Signatures


def test_a_wrong_signature_is_401_even_from_a_trusted_address(caller):
    query = signed("GET", f"/apps/{APP}/channels")
    assert caller.get("channels", query)[0] == 200
    assert caller.get("channels", query[:-1] + ("0" if query[-1] != "0" else "1"))[0] == 401


@pytest.mark.parametrize("query", ["auth_signature=", "auth_key=app-key", "auth_key=", "x=1&auth_signature=00"])
def test_half_a_signature_is_401(caller, query):
    assert caller.get("channels", query)[0] == 401


@pytest.mark.parametrize(("seconds", "status"), [(599, 200), (601, 401), (-599, 200), (-601, 401)])
def test_a_signature_is_good_for_ten_minutes(caller, seconds, status):
    query = signed("GET", f"/apps/{APP}/channels", clock=caller.world.clock)
    caller.world.clock.advance(seconds)
    assert caller.get("channels", query)[0] == status


def test_a_signature_is_for_one_method_path_and_body(caller):
    path = f"/apps/{APP}/events"
    body = b'{"name":"e","channel":"c","data":"x"}'
    query = signed("POST", path, body)
    assert caller.post("events", body, query=query)[0] == 200
    assert caller.post("events", body + b" ", query=query)[0] == 401
    assert caller.post("events/", body, query=query)[0] == 401
    assert caller.get("channels", query)[0] == 401
    assert len(caller.sent) == 1


def test_a_signature_of_another_app_is_401(calling):
    caller = calling(app_config(), app_config(id="other", key="other-key", secret="other"))
    assert caller.call("GET", "/apps/other/channels", key=True)[0] == 401


def test_nothing_can_be_signed_for_an_app_without_a_secret(calling):
    caller = calling(app_config(secret=""))
    assert caller.get("channels", "auth_key=app-key&auth_timestamp=1&auth_version=1.0&auth_signature=x")[0] == 401
    assert caller.get("channels")[0] == 200


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/apps",
        "/apps/",
        f"/apps/{APP}",
        f"/apps/{APP}/",
        f"/apps/{APP}/nothing",
        f"/apps/{APP}/events/x",
        f"/apps/{APP}/channels/c/x",
        f"/apps/{APP}/token",
        f"/apps/{APP}/Events",
        f"/x/apps/{APP}/events",
        "/metricsx",
        f"/apps/{APP}/channels/%ff",
        "/apps/%ff/channels",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(caller, path, method):
    status, answer = caller.call(method, path)
    assert status == 404
    assert answer["error"]


@pytest.mark.parametrize("pattern", ROUTES)
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "GET", "POST"])
def test_wrong_method_is_405_and_lists_the_allowed_methods(caller, pattern, method):
    allowed = ROUTES[pattern]
    if method in allowed:
        return
    path = f"/apps/{APP}/" + "/".join(pattern).replace("*", "c")
    response = caller.respond(Request(method, path, "", b"", "", 0))
    assert response.status == 405
    assert response.headers == f"Allow: {', '.join(sorted(allowed))}\r\n".encode()


def test_head_is_served_like_get(caller):
    assert caller.call("HEAD", "channels") == caller.get("channels")
    assert caller.call("HEAD", "channels", key=True) == caller.get("channels", key=True)
    assert caller.call("HEAD", "/health")[0] == 200


def test_segments_of_a_path_are_unescaped(caller):
    assert caller.get("/apps/app%2Dtest/channels")[0] == 200
    assert caller.get("channels/%61")[1]["error"].endswith("a")


def test_paths_can_be_configured(caller):
    caller.api = Api(caller.world.node, Config(api=ApiConfig(path="/push/")))
    assert caller.get(f"/push/{APP}/channels")[0] == 200
    assert caller.get(f"/apps/{APP}/channels")[0] == 404


@pytest.mark.parametrize("sent", ["/sockets/apps", "/sockets//apps"])
def test_a_call_below_another_path_may_be_signed_as_if_it_were_below_apps(caller, sent):
    """pusher-http-php sends such calls with its option `path`."""
    caller.api = Api(caller.world.node, Config(api=ApiConfig(path="/sockets/apps/")))
    body = b'{"name":"e","channel":"c","data":"x"}'
    for path in (f"/apps/{APP}/events", f"{sent}/{APP}/events"):
        assert caller.post(f"{sent}/{APP}/events", body, query=signed("POST", path, body)) == (200, {})
    for path in (f"/apps/{APP}/channels", f"/events/{APP}/events", f"/{APP}/events"):
        assert caller.post(f"{sent}/{APP}/events", body, query=signed("POST", path, body))[0] == 401
    assert caller.post(f"{sent}/{APP}/events", body + b" ", query=signed("POST", path, body))[0] == 401


def test_without_another_path_a_call_is_signed_as_it_is_sent(caller):
    body = b'{"name":"e","channel":"c","data":"x"}'
    assert caller.post(f"//apps/{APP}/events", body, query=signed("POST", f"/apps/{APP}/events", body))[0] == 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/app/app-key", "/pusher/app/app-key", "/ws/app/app-key/c", "/app/"])
def test_plain_request_on_a_websocket_path_is_426_and_names_the_upgrade(caller, method, path):
    response = caller.respond(Request(method, path, "protocol=7", b"", "it is far away", 0))
    assert response.status == 426
    assert b"WebSocket" in response.body
    assert response.headers == b"Upgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize("path", ["/ws/app/app-key/c", "/apps", "/application/x", "/ws"])
def test_websocket_paths_are_404_without_websocket_protocols(caller, path):
    caller.api = Api(caller.world.node, Config(server=ServerConfig(proto=frozenset({"pusher"}))))
    assert caller.get(path)[0] == 404
    assert caller.post("/app/app-key", b"")[0] == 404


def test_calls_follow_an_app_that_is_disabled_and_enabled(caller):
    assert caller.get("channels")[0] == 200
    for enable, status in ((False, 403), (True, 200)):
        config = app_config(enable=enable)
        caller.world.node.apps = Files((config,))
        caller.world.node.configure(config)
        assert caller.get("channels")[0] == status


def test_calls_find_an_app_that_is_added(caller):
    assert caller.get("/apps/new/channels")[0] == 404
    config = app_config(id="new", key="new-key")
    caller.world.node.apps = Files((config,))
    caller.world.node.configure(config)
    assert caller.get("/apps/new/channels")[0] == 200
