"""The console's pictures in the README and in docs/console.md: a shop after ten minutes of traffic.

`docs/console-overview.png` and `docs/console-inspector.png` are copies of `.pictures/book-overview-light.png` and
`.pictures/book-inspector.png`.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.browser import Browser, Tab
from tests.clients.console_site import enter, picture, until
from tests.support.console import Operator, console
from tests.support.process import APP
from tests.support.pusher_socket import ask_to_sign_in, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.receiver import receiving

pytestmark = pytest.mark.long

SECRET = "of the shop: long enough for access tokens"
TRAFFIC_SECONDS = 620
TRIES = 10
REFUSED = "[...document.querySelectorAll('.what')].find(one => one.textContent === 'refused')"


@contextlib.contextmanager
def shop() -> Iterator[tuple[Any, Operator, Any]]:
    """A server with two workers and the clients of a shop."""
    with receiving() as backend, contextlib.ExitStack() as stack:
        app = {
            **APP,
            "name": "The shop",
            "key": "shop-key",
            "secret": SECRET,
            "history": [{"filter": ["orders"], "size": 100, "ttl": 600}],
        }
        app["webhooks"] = [{"url": backend.url, "events": ["channel_occupied", "member_added"]}]
        config = {"server": {"workers": 2, "proto": ["pusher", "websocket"]}, "hooks": {"folder": "hooks"}}
        server, operator = stack.enter_context(console(config, {"shop": app, "app-test": {**APP, "secret": SECRET}}))
        clients = []
        for number in range(40):
            client = stack.enter_context(pusher_socket(server, "shop-key"))
            ask_to_sign_in(client, {"id": f"customer-{number:02d}"}, SECRET)
            client.expect("pusher:signin_success")
            for channel in ("orders", f"cart-{number:02d}", *(("prices",) if number % 2 else ())):
                client.subscribe(channel)
            if number < 5:
                client.request_subscription("presence-support", {"user_id": f"agent-{number}"}, SECRET)
                client.expect("pusher_internal:subscription_succeeded", "presence-support")
            clients.append(client)
        for _ in range(6):
            stack.enter_context(raw_socket(server, "prices", key="shop-key"))
        yield server, operator.sign_in(), clients


def _opened(browser: Browser, operator: Operator) -> Tab:
    """Opens the console, and chooses the app of the shop."""
    page = Tab(browser, f"http://127.0.0.1:{operator.port}/")
    page.show(1280)
    enter(page)
    page.evaluate("location.hash = '#/channels?app=shop'")
    until(page, "Boolean(document.querySelector('main tbody tr'))")
    return page


def _sleep(page: Tab, seconds: float) -> None:
    page.evaluate(f"new Promise(done => setTimeout(done, {seconds * 1000}))")


def test_pictures_of_the_overview_after_ten_minutes(browser: Browser) -> None:
    with shop() as (server, operator, clients):
        page = _opened(browser, operator)
        page.evaluate("location.hash = '#/overview'")
        start = time.monotonic()
        while (at := time.monotonic() - start) < TRAFFIC_SECONDS:
            server.post("/apps/shop/events", {"name": "price", "channels": ["prices"], "data": json.dumps({"at": at})})
            if int(at) % 7 == 0:
                order = {"name": "order-paid", "channels": ["orders"], "data": json.dumps({"number": int(at), "total": "49.90"})}
                server.post("/apps/shop/events", order)
            _sleep(page, 0.05 * (1.4 + math.sin(at / 40) + 0.5 * math.sin(at / 9)))
            for client in clients:
                with contextlib.suppress(TimeoutError):
                    client.receive(0)
        for theme in ("dark", "light"):
            page.show(1280, theme)
            picture(page, f"book-overview-{theme}")


def test_pictures_of_the_inspector_and_of_channels(browser: Browser) -> None:
    with shop() as (server, operator, clients):
        page = _opened(browser, operator)
        page.show(360, "dark")
        picture(page, "book-channels-360")
        page.show(1280)
        page.evaluate("location.hash = '#/inspector?app=shop&data=1'")
        until(page, "document.querySelector('.idle')?.textContent.startsWith('Watching')")
        for _ in range(TRIES):  # until the worker of this client knows that somebody watches
            clients[0].request_subscription("private-invoices", secret="wrong")
            _sleep(page, 0.5)
            if page.evaluate(f"Boolean({REFUSED})"):
                break
        for number in range(14):
            order = {"name": "order-paid", "channels": ["orders"], "data": json.dumps({"number": number, "total": "49.90"})}
            server.post("/apps/shop/events", order)
        clients[-1].close()
        until(page, "document.querySelectorAll('.line').length > 14")
        page.evaluate(f"{REFUSED}.click()")
        until(page, "Boolean(document.querySelector('.detail dl'))")
        picture(page, "book-inspector")
