"""The live channel of the console, and the answers about the server, on a server with one worker."""

from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from push1st.config.settings import MAX_APPS
from push1st.console.live import MAX_MESSAGE, MAX_SOCKETS
from push1st.console.samples import FIELDS
from tests.support.console import PASSWORD, Operator, console, live
from tests.support.process import ServerProcess

SECRET = "a secret of the app that is long enough"
HIDDEN = "hidden-value"


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[ServerProcess, Operator]]:
    apps = {
        "shop": {
            "key": "shop-key",
            "name": "The shop",
            "secret": SECRET,
            "history": [{"ttl": 10}],
            "webhooks": [
                {
                    "url": f"https://{HIDDEN}@host.example/hook?{HIDDEN}",
                    "headers": {"X-Token": HIDDEN},
                    "events": ["cache_miss"],
                }
            ],
            "authorize": {"url": "https://host.example/decide", "on": ["subscribe", "connect"]},
        },
        "other": {"key": "other-key"},
    }
    with console({}, apps) as (server, operator):
        operator.sign_in()
        yield server, operator


def test_watch_of_the_overview_sends_the_figures_of_the_worker(site: tuple[ServerProcess, Operator]) -> None:
    _, operator = site
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        first = page.receive()["overview"]
        (node,) = first["nodes"]
        assert node["worker"] == 0
        assert node["ready"]
        assert node["connections"] == {}
        assert len(first["series"]["fields"]) == len(first["series"]["values"]) == len(FIELDS)
        assert (first["missing"], first["away"], first["reload"]) == ([], "", None)
        second = page.receive()["overview"]
        assert second["series"] is None, "the samples are sent once"
        assert second["at"] > first["at"]
        page.send({"unwatch": "overview"})
        page.send({"watch": "nothing"})
        assert "overview" in page.until(lambda message: "error" in message)["error"]


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"watch": 1}', '{"watch": "overview", "every": 0}', "[" * 5000])
def test_message_that_is_not_valid_is_answered_with_an_error(site: tuple[ServerProcess, Operator], text: str) -> None:
    with live(site[1]) as page:
        page.send(text)
        assert page.receive()["error"]


def test_floods_and_long_messages_end_the_socket(site: tuple[ServerProcess, Operator]) -> None:
    for messages, code in (([" " * (MAX_MESSAGE + 1)], 1009), (["{}"] * 200, 1008)):
        with live(site[1]) as page:
            # In one write, because a server that closes a socket with unread input sends a reset, and the close code is lost.
            with page.socket.protocol_mutex:
                for message in messages:
                    page.socket.protocol.send_text(message.encode())
                page.socket.socket.sendall(b"".join(page.socket.protocol.data_to_send()))
            assert page.close_code() == code


def test_further_socket_is_rejected_and_the_end_of_the_session_ends_all(site: tuple[ServerProcess, Operator]) -> None:
    other = Operator(site[1].port).sign_in()
    with live(other) as page:
        assert other.post("/api/logout").status == 200
        assert page.close_code() == 4401
    kept = [live(site[1]) for _ in range(MAX_SOCKETS)]
    for one in kept:
        one.__enter__()
    try:
        with live(site[1]) as page, pytest.raises(ConnectionClosed) as ended:
            page.receive()
        assert ended.value.rcvd == Close(1013, "this worker has 10 live connections already, which is the limit")
    finally:
        for one in kept:
            one.__exit__(None, None, None)


def test_socket_needs_the_cookie_and_the_origin(site: tuple[ServerProcess, Operator]) -> None:
    stranger = Operator(site[1].port)
    with pytest.raises(InvalidStatus) as refused, live(stranger):
        pass
    assert refused.value.response.status_code == 401
    elsewhere = Operator(site[1].port, origin="http://evil.example")
    elsewhere.cookie = site[1].cookie
    with pytest.raises(InvalidStatus) as refused, live(elsewhere):
        pass
    assert refused.value.response.status_code == 403


def test_list_of_apps_has_figures_and_no_secret(site: tuple[ServerProcess, Operator]) -> None:
    _, operator = site
    answer = operator.get("/api/apps")
    assert SECRET.encode() not in answer.body
    apps = {app["id"]: app for app in answer.json["apps"]}
    assert apps["shop"]["secrets"] == [len(SECRET)]
    assert apps["other"]["secrets"] == []
    assert answer.json["total"] == len(apps)
    assert [app["id"] for app in operator.get("/api/apps?search=THE%20SHOP").json["apps"]] == ["shop"]
    first = operator.get("/api/apps?limit=1").json
    rest = operator.get(f"/api/apps?after={first['next']}").json
    assert {app["id"] for app in first["apps"] + rest["apps"]} == set(apps)
    assert rest["next"] is None
    assert operator.get("/api/apps?after=%00").status == 400


def test_app_has_its_settings_and_no_secret(site: tuple[ServerProcess, Operator]) -> None:
    _, operator = site
    answer = operator.get("/api/apps/shop")
    assert SECRET.encode() not in answer.body
    assert HIDDEN.encode() not in answer.body
    keys = {one["key"]: one for one in answer.json["settings"]}
    (webhook,) = keys["webhooks"]["lines"]
    assert webhook["endpoint"] == "https://…@host.example/hook?…"
    assert "events: cache_miss" in webhook["text"]
    (decides,) = keys["authorize"]["lines"]
    assert decides["endpoint"] == "https://host.example/decide"
    assert "on: connect, subscribe" in decides["text"]
    assert keys["webhooks"]["origin"].startswith("apps/apps.yml:")
    assert keys["limits.payload"]["origin"] == ""
    assert (answer.json["distinct_channels"], answer.json["has_more_channels"]) == (0, False)
    assert answer.json["unlocated_after"] is None
    assert operator.get("/api/apps/nothing").status == 404


def test_app_after_the_first_ones_says_that_the_places_of_its_settings_are_unknown() -> None:
    some = {"limits": {"payload": 20_000}}
    apps = {f"app-{number:03}": {"key": f"key-{number}", **some} for number in range(MAX_APPS + 1)}
    with console({}, apps) as (_, operator):
        operator.sign_in()
        found = [operator.get(f"/api/apps/app-{number:03}").json for number in (MAX_APPS - 1, MAX_APPS)]
        origins = [{one["key"]: one["origin"] for one in app["settings"]}["limits.payload"] for app in found]
        assert origins[0].startswith("apps/apps.yml:")
        assert origins[1] == ""
        assert [app["unlocated_after"] for app in found] == [None, MAX_APPS]


def test_configuration_has_origins_and_no_secret(site: tuple[ServerProcess, Operator]) -> None:
    answer = site[1].get("/api/config")
    assert PASSWORD.encode() not in answer.body
    assert SECRET.encode() not in answer.body
    origins = {one["key"]: one["origin"] for one in answer.json["settings"]}
    assert origins["console.listen"].startswith("server.yml:")
    assert "default" in origins.values()
    assert {one["role"] for one in answer.json["listeners"]} == {"server", "api", "console"}
    assert any("other: found no secret" in warning for warning in answer.json["warnings"])
    assert len(answer.json["warnings"]) == site[1].get("/api/overview").json["warnings"] >= 1
    assert answer.json["certificates"] == []
    notes = answer.json["notes"]
    assert any("keeps events for 10 s only" in note for note in notes), "the notes of `push1st check`"
    assert any("only if you move from the original Push1st" in note for note in notes)


def test_cluster_of_one_worker_has_no_broker(site: tuple[ServerProcess, Operator]) -> None:
    found = site[1].get("/api/cluster").json
    assert [(node["state"], node["here"]) for node in found["nodes"]] == [("ready", True)]
    assert found["broker"] is None
