"""A real browser, controlled over its DevTools protocol, and a web server for its pages."""

import base64
import contextlib
import hashlib
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from websockets.sync.client import ClientConnection, connect

from tests.support.nodejs import MASTER_KEY, MODULES
from tests.support.process import DEADLINE, wait_until
from tests.support.signing import channel_auth, hmac_hex

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root, where Chromium has none
    "--disable-gpu",
    "--hide-scrollbars",  # as on a phone, where they take no width
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
CODES = {"Tab": ("Tab", 9), "Enter": ("Enter", 13), "Escape": ("Escape", 27), "Backspace": ("Backspace", 8)}
"""the codes of keys that write no text, and their numbers"""
LEFT = ("Inspected target navigated or closed", "Execution context was destroyed.")
"""the errors of an evaluation whose page is loaded again"""
SHIFT = 8
"""the flag of the key Shift"""
MAX_REPORTS = 1000
"""the maximum number of kept messages that the browser sends by itself"""
HERE = Path(__file__).parent
PUSHER_JS = MODULES / "pusher-js" / "dist" / "web"
PUSH1ST_JS = HERE.parents[1] / "clients" / "js"
FILES = {
    "/": (HERE / "pages" / "pusher.html", "text/html"),
    "/pusher.js": (PUSHER_JS / "pusher.js", "text/javascript"),
    "/pusher-with-encryption.js": (PUSHER_JS / "pusher-with-encryption.js", "text/javascript"),
    "/echo.js": (MODULES / "laravel-echo" / "dist" / "echo.iife.js", "text/javascript"),
    "/recovering.html": (HERE / "pages" / "recovering.html", "text/html"),
    "/mqtt.html": (HERE / "pages" / "mqtt.html", "text/html"),
    "/mqtt.js": (MODULES / "mqtt" / "dist" / "mqtt.js", "text/javascript"),
    "/push1st.html": (HERE / "pages" / "push1st.html", "text/html"),
    "/push1st_worker.js": (HERE / "pages" / "push1st_worker.js", "text/javascript"),
    "/push1st.js": (PUSH1ST_JS / "push1st.js", "text/javascript"),
    "/push1st.mjs": (PUSH1ST_JS / "push1st.mjs", "text/javascript"),
}


class PageLeft(Exception):
    """The page was loaded again, or left, before the browser had answered."""


def find() -> str | None:
    """Returns the path of Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of the browser. `evaluate` runs JavaScript like the console of the page.

    script: JavaScript that runs before the scripts of the page.
    """

    def __init__(self, browser: "Browser", url: str, script: str = "") -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = browser.call("Target.attachToTarget", {"targetId": self._target, "flatten": True})["sessionId"]
        if script:
            self.call("Page.enable")
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.go(url)

    def call(self, method: str, deadline: float = DEADLINE, **params: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol for this page. deadline: the maximum seconds until its answer."""
        return self._browser.call(method, params, self._session, deadline)

    def go(self, url: str) -> None:
        """Loads another page, and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        wait_until(
            lambda: self.evaluate("document.readyState == 'complete' && location.href != 'about:blank'"), f"{url} is loaded"
        )

    def evaluate(self, code: str, deadline: float = DEADLINE) -> Any:
        answer = self.call("Runtime.evaluate", deadline, expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (code, answer["exceptionDetails"])
        return answer["result"].get("value")

    def do(self, function: str, *arguments: object) -> Any:
        """Calls a function of the page."""
        return self.evaluate(f"{function}({', '.join(map(json.dumps, arguments))})")

    @property
    def seen(self) -> list[Any]:
        found: list[Any] = self.evaluate("seen")
        return found

    def until(self, *what: object, deadline: float = DEADLINE) -> None:
        """Waits until the page has reported this event."""
        try:
            wait_until(lambda: list(what) in self.seen, f"the page sees {what}", deadline)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it has seen {self.seen}") from None

    def complaints(self) -> list[str]:
        """Returns the errors in the console of the page since it was loaded, those of the browser itself included."""
        for domain in ("Log", "Runtime"):
            self.call(f"{domain}.enable")  # sends the earlier messages too
        found = []
        for message in self._browser.reports(self._session):
            params = message["params"]
            if message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(str([one.get("value", one.get("description")) for one in params["args"]]))
            elif message["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
        for domain in ("Log", "Runtime"):
            self.call(f"{domain}.disable")
        return found

    @contextlib.contextmanager
    def watched_frames(self) -> Iterator[Callable[[], list[str]]]:
        """Watches the WebSockets of the page. The value returns the texts that arrived since its last call."""

        def texts() -> list[str]:
            self.evaluate("0")  # reads what the browser has sent
            received = "Network.webSocketFrameReceived"
            reports = self._browser.reports(self._session)
            return [one["params"]["response"]["payloadData"] for one in reports if one["method"] == received]

        self.call("Network.enable")
        yield texts
        self.call("Network.disable")

    def go_offline(self, is_offline: bool) -> None:
        """Disconnects the page from the network, or connects it again, and fires the events of the window."""
        self.call("Network.emulateNetworkConditions", offline=is_offline, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def show(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """Sets the width of the page in pixels, and the colours that the reader prefers: `light` or `dark`."""
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def to_front(self) -> None:
        """Shows this page in place of the others of the browser, which become hidden."""
        self.call("Page.bringToFront")

    def press(self, key: str, text: str = "", modifiers: int = 0) -> None:
        """Presses and releases a key. text: the text that the key writes."""
        code, number = CODES.get(key, ("", ord(key[0].upper())))
        down: dict[str, Any] = {"type": "keyDown" if text else "rawKeyDown", "key": key, "text": text, "code": code}
        down |= {"windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", **down)
        self.call("Input.dispatchKeyEvent", **{**down, "type": "keyUp", "text": ""})

    def write(self, text: str) -> None:
        """Writes text into the focused field, key by key."""
        for letter in text:
            self.press(letter, letter)

    def picture(self, path: Path, most: int = 0) -> None:
        """Writes a picture of the whole page as PNG. most: the maximum height in pixels; 0: no maximum."""
        asked: dict[str, Any] = {"format": "png", "captureBeyondViewport": True, "optimizeForSpeed": True}
        if most:
            width, height = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
            asked["clip"] = {"x": 0, "y": 0, "width": width, "height": min(most, height), "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **asked)["data"]))

    def put_cookie(self, name: str, value: str, url: str) -> None:
        """Stores a cookie that scripts cannot read. url: a page of its origin."""
        self.call("Network.setCookie", name=name, value=value, url=url, httpOnly=True, sameSite="Strict")

    def close(self) -> None:
        """Closes the page without waiting for its scripts, as a person does."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})


class Browser:
    """A running Chromium with a profile of its own."""

    def __init__(self, devtools: ClientConnection, pages: str) -> None:
        self._devtools = devtools
        self._calls = 0
        self._reports: deque[dict[str, Any]] = deque(maxlen=MAX_REPORTS)
        self.pages = pages

    def call(self, method: str, params: dict[str, Any], session: str | None = None, deadline: float = DEADLINE) -> dict[str, Any]:
        self._calls += 1
        asked: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if session is not None:
            asked["sessionId"] = session
        self._devtools.send(json.dumps(asked))
        while True:
            answer = json.loads(self._devtools.recv(deadline))
            if answer.get("id") == self._calls:
                if "error" in answer and answer["error"]["message"] in LEFT:
                    raise PageLeft(answer["error"]["message"])
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self._reports.append(answer)

    def reports(self, session: str) -> list[dict[str, Any]]:
        """Returns the messages about a page that the browser sent by itself, and forgets them."""
        found = [one for one in self._reports if one.get("sessionId") == session]
        self._reports.clear()
        return found

    def tab(self, page: str = "") -> Tab:
        return Tab(self, self.pages + page)


@contextlib.contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """Runs a browser for the length of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="p1-browser-", ignore_cleanup_errors=True) as folder, serving() as pages:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(folder) / "DevToolsActivePort"
            wait_until(lambda: port_file.exists() and port_file.read_text().count("\n"), "Chromium listens", 30)
            port, path = port_file.read_text().split("\n")
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as devtools:
                browser = Browser(devtools, pages)
                yield browser
                browser.call("Browser.close", {})
            process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait()


class Pages(http.server.BaseHTTPRequestHandler):
    """Serves the pages, the libraries, and an endpoint that signs subscriptions and sign-ins like a backend."""

    def do_GET(self) -> None:
        path, kind = FILES.get(self.path, (None, ""))
        if path is None:
            self.send_error(404)
        else:
            self._answer(path.read_bytes(), kind)

    def do_POST(self) -> None:
        form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        socket_id, channel, user = form["socket_id"], form.get("channel_name"), form["user"]
        if channel is None:
            answer = {"auth": f"app-key:{hmac_hex('secret', f'{socket_id}::user::{user}')}", "user_data": user}
        elif channel.startswith("presence-"):
            answer = {"auth": channel_auth(socket_id, channel, user), "channel_data": user}
        else:
            answer = {"auth": channel_auth(socket_id, channel)}
        if channel is not None and channel.startswith("private-encrypted-"):
            secret = hashlib.sha256(channel.encode() + base64.b64decode(MASTER_KEY)).digest()
            answer["shared_secret"] = base64.b64encode(secret).decode()
        self._answer(json.dumps(answer).encode(), "application/json")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Runs a web server for the pages. Its origin differs from that of Push1st, as it does in practice."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
