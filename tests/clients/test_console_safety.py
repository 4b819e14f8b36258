"""Access to the console: the sign-in, cookies, requests of other sites, and the headers of every answer."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from push1st.console.passwords import hashed
from tests.clients.browser import Browser, Tab
from tests.support.console import PASSWORD, Operator, console
from tests.support.process import DEADLINE, PUSH1ST, ServerProcess, free_ports, running, wait_until

PROXY = "127.0.0.0/8"
CALLS = ("/api/version", "/api/session", "/api/nothing", "/api/apps", "/openapi.json")


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[ServerProcess, Operator]]:
    """A console behind a proxy on this machine, so that each test can be an address of its own."""
    with console({"log": {"level": "debug"}}, proxies=PROXY) as found:
        yield found


@pytest.fixture
def operator(place: tuple[ServerProcess, Operator]) -> Operator:
    return Operator(place[1].port)


# Sign-in


def test_nothing_below_api_is_served_without_a_session(operator: Operator) -> None:
    for path in CALLS:
        answer = operator.get(path)
        assert (answer.status, answer.json) == (401, {"error": "sign in"}), path
    assert operator.post("/api/logout").status == 401
    assert operator.request("DELETE", "/api/nothing").status == 401


def test_operator_signs_in_and_out(operator: Operator) -> None:
    assert operator.sign_in().get("/api/version").json["worker"] == 0
    kept = operator.cookie
    session = operator.get("/api/session").json
    assert 0 < session["expires"] < session["ends"]
    description = operator.get("/openapi.json").json
    assert (description["openapi"][:3], len(description["servers"])) == ("3.1", 2)
    assert "/apps/{app_id}/events" in description["paths"]
    assert operator.get("/api/nothing").status == 404
    assert operator.post("/api/version").status == 405
    assert operator.post("/api/logout").json == {}
    assert operator.cookie == kept.partition("=")[0] + "="
    operator.cookie = kept
    assert operator.get("/api/session").status == 401, "a cookie of an ended session is no longer valid"


def test_wrong_password_gives_no_session(operator: Operator) -> None:
    answer = operator.post("/api/login", {"password": PASSWORD + "!"}, X_Forwarded_For="192.0.2.10")
    assert (answer.status, answer.json) == (401, {"error": "the password is wrong"})
    assert "Set-Cookie" not in answer.headers


def test_wrong_password_counts_as_refused_and_opening_the_page_does_not(
    place: tuple[ServerProcess, Operator], operator: Operator
) -> None:
    server, _ = place

    def refused() -> int:
        found = re.search(r'push1st_refusals_total\{[^}]*reason="401"[^}]*\} (\d+)', server.get("/metrics").body.decode())
        return 0 if found is None else int(found[1])

    before = refused()
    for path in ("/", "/api/session", "/api/overview"):
        operator.get(path)
    assert refused() == before
    operator.post("/api/login", {"password": "wrong"}, X_Forwarded_For="192.0.2.11")
    assert refused() == before + 1

    def lines() -> list[str]:
        return [one for one in server.output.splitlines() if "request refused" in one and "192.0.2.11" in one]

    (line,) = wait_until(lines, "the line of the log")
    assert "the password is wrong" in line
    assert "/api/login" in line


@pytest.mark.parametrize("cookie", ["x", "1.1.1.1", "9999999999.9999999999.AAAAAAAAAAAAAAAAAAAAAA." + "A" * 43])
def test_forged_cookie_is_rejected(operator: Operator, cookie: str) -> None:
    operator.sign_in()
    operator.cookie = f"{operator.cookie.partition('=')[0]}={cookie}"
    assert operator.get("/api/session").status == 401


def test_cookie_is_out_of_reach_of_scripts_and_other_sites(operator: Operator) -> None:
    answer = operator.post("/api/login", {"password": PASSWORD})
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert re.match(r"push1st-console-[0-9a-f]{8}=", name)
    assert attributes == ["Path=/", "Max-Age=1800", "HttpOnly", "SameSite=Strict"]


def test_address_has_five_tries_and_another_address_has_its_own(operator: Operator) -> None:
    for _ in range(5):
        assert operator.post("/api/login", {"password": "wrong"}, X_Forwarded_For="192.0.2.1").status == 401
    limited = operator.post("/api/login", {"password": PASSWORD}, X_Forwarded_For="192.0.2.1")
    assert limited.status == 429
    assert 0 < int(limited.headers["Retry-After"]) <= 60
    assert operator.post("/api/login", {"password": PASSWORD}, X_Forwarded_For="192.0.2.2").status == 200


def test_address_in_a_header_is_only_believed_from_a_configured_proxy() -> None:
    with console() as (_, operator):
        for number in range(5):
            assert operator.post("/api/login", {"password": "wrong"}, X_Forwarded_For=f"192.0.2.{number}").status == 401
        assert operator.post("/api/login", {"password": "wrong"}, X_Forwarded_For="192.0.2.9").status == 429


def test_a_hash_in_the_configuration_accepts_its_password() -> None:
    with console(password=hashed(PASSWORD, bytes(16)).text) as (_, operator):
        assert operator.post("/api/login", {"password": hashed(PASSWORD, bytes(16)).text}).status == 401
        assert operator.sign_in().get("/api/session").status == 200


# Other sites


def test_changes_need_the_headers_of_the_own_page(operator: Operator) -> None:
    operator.sign_in()
    for headers in (
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{operator.port}"},
        {"Push1st_Console": None},
        {"Push1st_Console": "2"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        for path in ("/api/logout", "/api/login", "/", "/health"):
            assert operator.post(path, b'{"password":"x"}', **headers).status == 403, (path, headers)
    assert operator.get("/api/session").status == 200


def test_requests_of_other_sites_get_the_empty_page_only(operator: Operator) -> None:
    operator.sign_in()
    elsewhere = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert operator.get("/", **elsewhere).status == 200
    for path in CALLS:
        assert operator.get(path, **elsewhere).status == 403
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "push1st-console"}
    asked = operator.request("OPTIONS", "/api/logout", None, {"Origin": "http://evil.example", **preflight})
    assert asked.status == 403
    assert not [name for name in asked.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6003", "127.0.0.1.evil.example", ""])
def test_names_that_may_be_another_page_s_are_rejected(operator: Operator, host: str) -> None:
    operator.sign_in()
    for path in ("/", "/api/session"):
        assert operator.get(path, Host=host).status == 403
    for path in ("/health", "/ready"):
        assert operator.get(path, Host=host).status == 200


def test_localhost_with_any_port_is_an_own_name(operator: Operator) -> None:
    for host in ("localhost", f"localhost:{operator.port}", "LOCALHOST:1", "[::1]:6003", "10.0.0.1"):
        assert operator.get("/", Host=host).status == 200


def test_console_behind_a_proxy_accepts_the_configured_origin_only() -> None:
    with console(origin="https://console.example", proxies=PROXY) as (_, near):
        operator = Operator(near.port, origin="https://console.example", host="console.example")
        answer = operator.post("/api/login", {"password": PASSWORD})
        assert answer.status == 200
        assert answer.headers["Set-Cookie"].startswith("__Host-push1st-")
        assert answer.headers["Set-Cookie"].endswith("; Path=/; Max-Age=1800; HttpOnly; SameSite=Strict; Secure")
        for host in ("console.example", "console.example:443", f"127.0.0.1:{near.port}"):
            assert operator.get("/api/session", Host=host).status == 200
        assert operator.get("/api/session", Host="console.example:80").status == 403
        refused = near.post("/api/login", {"password": PASSWORD})
        assert refused.status == 403
        assert refused.json == {"error": "the header Origin must be the console's origin, which is https://console.example"}


def handshake(operator: Operator, path: str = "/api/live", **headers: str | None) -> int:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Origin": operator.origin}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    answer = operator.request("GET", path, None, {**upgrade, **key, **headers})
    if answer.status != 101:
        assert "Content-Security-Policy" in answer.headers
    return answer.status


def test_websockets_need_a_session_and_the_own_page(operator: Operator) -> None:
    assert handshake(operator) == 401
    operator.sign_in()
    assert handshake(operator, Origin="http://evil.example") == 403
    assert handshake(operator, Origin=None) == 403
    assert handshake(operator, Host="evil.example") == 403
    assert handshake(operator, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert handshake(operator, "/app/app-key") == 404
    assert handshake(operator, "/ws/app/app-key/c") == 404


# Answers


def test_every_answer_has_the_headers_of_safety(operator: Operator) -> None:
    operator.sign_in()
    answers = {
        path: operator.get(path)
        for path in ("/", "/index.html", "/nothing", "/health", "/ready", *CALLS, "/api/login", f"/{'x' * 300}", "/api/%FF")
    }
    answers |= {
        "a wrong method": operator.request("PUT", "/"),
        "a large body": operator.post("/api/logout", b"x" * 5000),
        "a large head": operator.get("/", X=f"{'x' * 17_000}"),
        "another host": operator.get("/", Host="evil.example"),
        "no sign-in": operator.post("/api/login", b"x"),
        "two hosts": operator.get("/", Host="a, b"),
        "an invalid handshake": operator.request("GET", "/api/live", b"x", {"Upgrade": "websocket", "Connection": "Upgrade"}),
    }
    for name, answer in answers.items():
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff", name
        assert headers["Referrer-Policy"] == "no-referrer", name
        assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin", name
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"), name
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["Cache-Control"] == ("no-cache" if name in ("/", "/index.html") else "no-store"), name
        assert not [one for one in headers if one.lower().startswith("access-control")], name


def test_page_and_its_files_are_served_at_relative_paths_and_cached(operator: Operator) -> None:
    page = operator.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert operator.get("/", If_None_Match=page.headers["ETag"]).status == 304
    links = re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode())
    assert links
    for link in links:
        file = operator.get(f"/{link}", Accept_Encoding="gzip")
        assert (file.status, file.headers["Content-Encoding"]) == (200, "gzip"), link
        assert file.headers["Cache-Control"].endswith("immutable")
        unchanged = operator.get(f"/{link}", Accept_Encoding="gzip", If_None_Match=file.headers["ETag"])
        assert (unchanged.status, unchanged.body) == (304, b"")
    head = operator.request("HEAD", "/")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", page.headers["Content-Length"])


def test_bodies_have_a_bound(operator: Operator) -> None:
    operator.sign_in()
    assert operator.post("/api/login", b" " * 4097).status == 413
    assert operator.post("/api/nothing", b" " * 4097).status == 413
    assert operator.post("/api/apps/app-test/nothing", b" " * (1 << 20)).status == 404
    assert operator.post("/api/apps/app-test/nothing", b" " * ((1 << 20) + 1)).status == 413


def test_console_serves_no_api_and_no_clients(operator: Operator) -> None:
    operator.sign_in()
    event = {"name": "e", "channels": ["c"], "data": "1"}
    for path in ("/apps/app-test/events", "/apps/app-test/channels", "/metrics", "/status", "/sse/app/app-key/c"):
        assert operator.get(path).status == 404, path
        assert operator.post(path, event).status == 405, path


def test_other_addresses_do_not_serve_the_console(place: tuple[ServerProcess, Operator]) -> None:
    server, _ = place
    for port in (server.ws_port, server.api_port):
        for path in ("/api/session", "/api/login", "/index.html"):
            assert server.get(path, port=port).status == 404


def test_sign_ins_are_logged_without_the_password(place: tuple[ServerProcess, Operator], operator: Operator) -> None:
    server, _ = place
    operator.post("/api/login", {"password": PASSWORD}, X_Forwarded_For="192.0.2.20")
    operator.post("/api/login", {"password": "no such password"}, X_Forwarded_For="192.0.2.20")
    wait_until(lambda: re.search(r"console sign-in refused .*ip=192.0.2.20.*reason='wrong password'", server.output), "a line")
    assert re.search(r"console sign-in  .*ip=192.0.2.20", server.output)
    assert PASSWORD not in server.output
    assert "no such password" not in server.output
    assert "push1st-console-" not in server.output


def test_without_a_password_nothing_of_the_console_is_imported() -> None:
    code = (
        "import sys, push1st.cli.serve, push1st.process.single, push1st.process.worker, push1st.process.supervisor; "
        "print([name for name in sys.modules if name.startswith(('push1st.console', 'push1st.core.tap'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Bounds


def test_connections_to_the_console_do_not_take_the_descriptors_of_the_api() -> None:
    (port,) = free_ports(1)
    section = {"password": PASSWORD, "listen": f"tcp://127.0.0.1:{port}"}
    with running({"console": section}, files=100) as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert server.get("/status").status == 200


# A real browser


@pytest.fixture
def signed_in(place: tuple[ServerProcess, Operator], browser: Browser) -> Tab:
    """A page of the console in a browser, whose operator signs in as the page does."""
    tab = Tab(browser, f"http://127.0.0.1:{place[1].port}/")
    code = """(async password => {
      window.violations = [];
      document.addEventListener("securitypolicyviolation", event => window.violations.push(event.violatedDirective));
      const headers = {"Push1st-Console": "1"};
      const answer = await fetch("api/login", {method: "POST", headers, body: JSON.stringify({password})});
      return answer.status;
    })"""
    assert tab.do(code, PASSWORD) == 200
    return tab


def test_browser_keeps_the_cookie_from_scripts(signed_in: Tab) -> None:
    assert signed_in.evaluate("fetch('api/session').then(answer => answer.status)") == 200
    assert signed_in.evaluate("document.cookie") == ""
    assert signed_in.evaluate("violations") == []


def test_policy_stops_injected_scripts_and_requests_to_other_sites(signed_in: Tab) -> None:
    code = """(async () => {
      const problems = [];
      const script = document.createElement("script");
      try { script.text = "window.injected = 1"; document.body.append(script); }
      catch (problem) { problems.push(problem.name); }
      try { document.body.innerHTML = "<img src=x onerror=window.injected=1>"; }
      catch (problem) { problems.push(problem.name); }
      await fetch("http://127.0.0.1:9/").catch(problem => problems.push(problem.name));
      return [problems, window.injected === undefined];
    })()"""
    assert signed_in.evaluate(code) == [["TypeError"] * 3, True]
    reported = {"connect-src", "require-trusted-types-for"}
    wait_until(lambda: set(signed_in.evaluate("violations")) == reported, "the browser reports what the policy stopped")


def test_page_of_another_port_of_this_machine_cannot_use_the_console(
    place: tuple[ServerProcess, Operator], browser: Browser, signed_in: Tab
) -> None:
    """The browser sends the cookie with these requests: to it, all ports of 127.0.0.1 are one site."""
    console_url = f"http://127.0.0.1:{place[1].port}/"
    other = browser.tab()
    assert other.evaluate("location.port") != str(place[1].port)
    code = """(async url => {
      const outcomes = [];
      const read = (path, init) => fetch(url + path, {credentials: "include", ...init})
        .then(answer => outcomes.push(answer.type + answer.status), problem => outcomes.push(problem.name));
      await read("api/session");
      await read("api/logout", {method: "POST", headers: {"Push1st-Console": "1"}});
      await read("api/logout", {method: "POST", mode: "no-cors"});
      await read("api/session", {mode: "no-cors"});
      const socket = new WebSocket(url.replace("http", "ws") + "api/live");
      outcomes.push(await new Promise(done => { socket.onopen = () => done("open"); socket.onerror = () => done("error"); }));
      const frame = document.createElement("iframe");
      const loaded = new Promise(done => { frame.onload = done; });
      frame.src = url;
      document.body.append(frame);
      await loaded;
      let inside = "";
      try { inside = frame.contentDocument === null ? "blocked" : "empty"; } catch { inside = "blocked"; }
      outcomes.push(inside);
      return outcomes;
    })"""
    found = other.do(code, console_url)
    assert found[:2] == ["TypeError", "TypeError"], "not readable, and no preflight succeeds"
    assert set(found[2:4]) <= {"TypeError", "opaque0"}
    assert found[4:] == ["error", "blocked"]
    assert signed_in.evaluate("fetch('api/session').then(answer => answer.status)") == 200, "nothing signed the operator out"


# The demo


@pytest.mark.parametrize("workers", ["1", "2"])
def test_demo_shows_the_password_of_its_console_on_a_terminal_only(tmp_path: Path, workers: str) -> None:
    server, api, port = free_ports(3)
    listen = {"SERVER": server, "API": api, "CONSOLE": port}
    environment = {f"PUSH1ST_{name}_LISTEN": f"tcp://127.0.0.1:{number}" for name, number in listen.items()}
    own, theirs = pty.openpty()
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*PUSH1ST, "serve", "--workers", workers],
            stdout=theirs,
            stderr=log,
            env={"PATH": os.environ["PATH"], "PUSH1ST_LOG_LEVEL": "debug", **environment},
            cwd=tmp_path,
        )
    os.close(theirs)
    try:
        shown = b""
        while b"Stop with Ctrl-C." not in shown:
            shown += os.read(own, 4096)
        found = re.search(rb"console     http://127.0.0.1:(\d+)   \(password ([\w-]{16})\)", shown)
        assert found is not None
        assert int(found[1]) == port
        operator = Operator(port).sign_in(found[2].decode())
        assert operator.get("/api/version").json["demo"] is True
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        os.close(own)
    assert found[2] not in (tmp_path / "log").read_bytes()
