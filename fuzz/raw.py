"""Fuzzes the raw WebSocket codec: any text is a message, is rejected with 400 or 413, or ends the connection with 1002."""

import json
from random import Random

from fuzz.pusher import sent
from fuzz.runner import among, main
from fuzz.websocket import whole
from push1st.errors import Disconnect, Refused
from push1st.hooks.formats import push1st_event
from push1st.messages import Failure, HookEvent, Message, Publish
from push1st.protocols.raw import Raw
from push1st.protocols.websocket import close_frame

SEEDS = [
    b'{"channel":"c","event":"e","data":{"a":[1,2.5,null,true,"\\u0436"]}}',
    b'{"channel":"c","event":"e","data":"text\\n","options":{"ttl":5,"delivery":"multicast","session":"p.q"}}',
    b'{"channel":"c","event":"e","options":{"delivery":"unicast","session":"1.2"}}',
    b'{"channel":"c","event":"e","data":1,"headers":{"a":["b"]},"options":{"ttl":1},"extra":null,"socket_id":"p.1.2"}',
    '{"channel":"жук/a","event":"ж","data":"ж"}'.encode(),
]
codec = Raw()


def run(data: bytes, _random: Random) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # the WebSocket decoder ends such a connection
        return
    try:
        command = codec.decode(text)
    except Refused as refused:
        among(refused.code, (400, 413))
        sent(codec.reply(Failure(refused.code, refused.text)))
        return
    except Disconnect as end:
        among(end.code, (1002,))
        whole(close_frame(end.code, end.reason))
        return
    assert isinstance(command, Publish)
    assert command.delivery == "broadcast" or command.target
    one = Message("app", command.channel, command.event, command.data, 1, 2, "1.2", headers=command.headers)
    message = sent(codec.message(one, 3))
    assert (message["channel"], message["event"]) == (command.channel, command.event)
    assert json.dumps(message["data"]) == json.dumps(json.loads(command.data))
    assert ("headers" in message) == bool(command.headers)
    event = HookEvent(
        "client-event", "app", command.channel, 2, "1.2", event=command.event, data=command.data, given=command.given
    )
    pushed = json.loads(json.loads(push1st_event(event))["data"])
    assert json.dumps(pushed["data"]) == json.dumps(message["data"])
    assert pushed.get("headers", {}) == message.get("headers", {})


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
