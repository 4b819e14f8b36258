"""Fuzzes the Pusher codec: any text is a command or is rejected with 400, and each command can be encoded as a message."""

import json
from random import Random

from fuzz.runner import among, main
from push1st.errors import Refused
from push1st.jsontext import string_size
from push1st.messages import Failure, Message, Publish, Subscribe, Subscribed, SubscriptionRefused, Unsubscribe
from push1st.protocols.pusher import Pusher

SEEDS = [
    rb'{"event":"pusher:subscribe","data":{"channel":"presence-x","auth":"KEY:hex","channel_data":"{\"user_id\":\"u1\"}"}}',
    rb'{"event":"pusher:subscribe","data":"{\"channel\":\"x\"}"}',
    b'{"event":"pusher:unsubscribe","data":{"channel":"presence-x"}}',
    b'{"event":"pusher:ping","data":{}}',
    b'{"event":"pusher:pong","data":"{}"}',
    b'{"event":"client-typing","channel":"private-x","data":{"a":[1,2.5,null,true,"\\u0436"]}}',
    b'{"event":"client-typing","channel":"private-x","data":"text\\n"}',
    rb'{"event":"pusher:signin","data":{"auth":"KEY:hex","user_data":"{\"id\":\"u1\"}"}}',
]
codec = Pusher()


def run(data: bytes, _random: Random) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # the WebSocket decoder ends such a connection
        return
    try:
        command = codec.decode(text)
    except Refused as refused:
        among(refused.code, (400,))
        sent(codec.reply(Failure(refused.code, refused.text)))
        return
    match command:
        case Publish(channel, event, value):
            string_size(value)
            message = sent(codec.message(Message("app", channel, event, value, 1, 2, "1.2", "", user_id=channel), 3))
            assert (message["event"], message["channel"]) == (event, channel)
            assert isinstance(message["data"], str)
        case Subscribe(channel) | Unsubscribe(channel):
            sent(codec.reply(Subscribed(channel)))
            answer = codec.reply(SubscriptionRefused(channel, "Invalid", channel, 400))
            error = codec.reply(Failure(None, channel, channel))
            assert answer.endswith(error)
            sent(answer.removesuffix(error))
            sent(error)


def sent(frame: bytes) -> dict[str, object]:
    """Returns the text that a client reads in a text frame."""
    size = frame[1]
    start = 2 if size < 126 else 4 if size == 126 else 10
    assert frame[0] == 0x81
    assert len(frame) - start == (size if size < 126 else int.from_bytes(frame[2:start], "big"))
    message: dict[str, object] = json.loads(frame[start:])
    return message


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
