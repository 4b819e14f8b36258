"""Calls of a function in Python, and the meaning of its return value."""

import asyncio
import json
import sys

import pytest

from push1st.hooks.child import DELIVER, REQUEST
from push1st.hooks.events import Allow, ClientEvent, Connecting, Publishing, Refuse, Subscribing, Triggered, User
from push1st.hooks.python import events, load, reply_of


def test_events_are_typed_and_name_their_app():
    body = b'{"time_ms":1,"events":[{"name":"client_event","channel":"c","event":"e","data":"d","socket_id":"1.2"}]}'
    assert events("a", body) == [ClientEvent("a", "c", "e", "d", "1.2")]


def test_a_hook_of_push1st_is_typed():
    body = b'{"event":"join","app":"a","channel":"c","session":"1.2","data":"{}"}'
    assert events("a", body) == [Triggered("join", "a", "c", "1.2", "{}")]


@pytest.mark.parametrize(
    ("result", "reply"),
    [
        (True, {"allow": True}),
        (False, {"allow": False}),
        (Allow(), {"allow": True}),
        (Allow(user=User("7", {"a": 1}), data=None), {"allow": True, "user": {"id": "7", "info": {"a": 1}}, "data": None}),
        (Refuse(403, "no"), {"allow": False, "code": 403, "message": "no"}),
        (Refuse(), {"allow": False}),
    ],
)
def test_return_value_is_encoded_like_an_http_reply(result, reply):
    assert json.loads(reply_of(result)) == reply


@pytest.mark.parametrize("result", [None, 1, "yes", {"allow": True}])
def test_other_return_values_are_rejected(result):
    with pytest.raises(TypeError, match="an answer is"):
        reply_of(result)


MODULE = """
said = []

def hook(event):
    said.append(event.channel)

async def may(question):
    said.append(type(question))
    return True
"""


def test_functions_are_found_in_the_configurations_folder_sync_and_async(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "module_of_a_test.py").write_text(MODULE)
    with asyncio.Runner() as runner:
        hook = load("a", "module_of_a_test:hook", str(tmp_path), runner)
        hook(DELIVER, b'{"time_ms":1,"events":[{"name":"cache_miss","channel":"c"},{"name":"cache_miss","channel":"d"}]}')
        may = load("a", "module_of_a_test:may", str(tmp_path), runner)
        for on, more in (
            ("connect", '"query":""'),
            ("subscribe", '"channel":"c"'),
            ("publish", '"channel":"c","event":"e","data":[1]'),
        ):
            assert may(REQUEST, f'{{"on":"{on}","app":"a","socket_id":"1.2","ip":"::1",{more}}}'.encode()) == b'{"allow":true}'
    assert sys.modules.pop("module_of_a_test").said == ["c", "d", Connecting, Subscribing, Publishing]
