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
from collections.abc import Iterator
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
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
CODES = {"Tab": ("Tab", 9), "Enter": ("Enter", 13), "Escape": ("Escape", 27)}
"""the codes of keys that write no text, and their numbers"""
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


def find() -> str | None:
    """Returns the path of Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of the browser. `evaluate` runs JavaScript like the console of the page."""

    def __init__(self, browser: "Browser", url: str) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = browser.call("Target.attachToTarget", {"targetId": self._target, "flatten": True})["sessionId"]
        browser.call("Page.navigate", {"url": url}, self._session)
        wait_until(
            lambda: self.evaluate("document.readyState == 'complete' && location.href != 'about:blank'"), f"{url} is loaded"
        )

    def evaluate(self, code: str) -> Any:
        asked = {"expression": code, "returnByValue": True, "awaitPromise": True}
        answer = self._browser.call("Runtime.evaluate", asked, self._session)
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

    def go_offline(self, is_offline: bool) -> None:
        """Disconnects the page from the network, or connects it again, and fires the events of the window."""
        conditions = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._browser.call("Network.emulateNetworkConditions", conditions, self._session)

    def show(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """Sets the width of the page in pixels, and the colours that the reader prefers: `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._browser.call("Emulation.setDeviceMetricsOverride", size, self._session)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._browser.call("Emulation.setEmulatedMedia", {"features": features}, self._session)

    def press(self, key: str, text: str = "") -> None:
        """Presses and releases a key. text: the text that the key writes."""
        code, number = CODES.get(key, ("", ord(key[0].upper())))
        down: dict[str, Any] = {"type": "keyDown" if text else "rawKeyDown", "key": key, "text": text, "code": code}
        down["windowsVirtualKeyCode"] = number
        self._browser.call("Input.dispatchKeyEvent", down, self._session)
        self._browser.call("Input.dispatchKeyEvent", {**down, "type": "keyUp", "text": ""}, self._session)

    def write(self, text: str) -> None:
        """Writes text into the focused field, key by key."""
        for letter in text:
            self.press(letter, letter)

    def picture(self, path: Path) -> None:
        """Writes a picture of the whole page as PNG."""
        asked = {"format": "png", "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self._browser.call("Page.captureScreenshot", asked, self._session)["data"]))

    def close(self) -> None:
        """Closes the page without waiting for its scripts, as a person does."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})


class Browser:
    """A running Chromium with a profile of its own."""

    def __init__(self, devtools: ClientConnection, pages: str) -> None:
        self._devtools = devtools
        self._calls = 0
        self.pages = pages

    def call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._calls += 1
        asked: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if session is not None:
            asked["sessionId"] = session
        self._devtools.send(json.dumps(asked))
        while True:
            answer = json.loads(self._devtools.recv(DEADLINE))
            if answer.get("id") == self._calls:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

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
