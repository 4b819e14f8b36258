"""Publishing: `POST /apps/{app}/events` (Push1st API, section 3; Pusher protocol, section 9).

Everything in a request is checked before anything is published.
"""

import re
import time

import msgspec

from push1st.api.call import Call, answer
from push1st.channels import kind_of, reserved_event
from push1st.errors import Refused
from push1st.jsontext import encode, string_size
from push1st.limits import Limits
from push1st.messages import API, DEFAULT_OPTIONS, Options, Response

SOCKET_ID = re.compile(r"([^\x00-\x1f]{1,520}\.)?\d{1,20}\.\d{1,20}\Z", re.ASCII)
ATTRIBUTES = ("user_count", "subscription_count")


class Event(msgspec.Struct, gc=False):
    name: str
    data: msgspec.Raw
    channels: list[str] | None = None
    channel: str | None = None
    socket_id: str | None = None
    info: str | None = None
    options: Options | None = None


_event = msgspec.json.Decoder(Event)


async def publish(call: Call) -> Response:
    event = call.body(_event)
    limits = call.app.config.limits
    channels = event.channels
    if channels is None:
        if event.channel is None:
            raise Refused(400, "channels is missing: a list of channel names, or channel: one name")
        channels = [event.channel]
    elif event.channel is not None:
        raise Refused(400, "channels and channel are both given")
    if not 1 <= len(channels) <= limits.channels_per_event:
        raise Refused(400, f"channels has {len(channels)} entries, allowed are 1 to {limits.channels_per_event}")
    for name in channels:
        call.check_channel_name(name)
    if len(channels) > 1:
        for name in channels:
            if kind_of(name).encrypted:
                raise Refused(400, f"an event on an encrypted channel goes to that channel alone, not to {len(channels)}")
        channels = list(dict.fromkeys(channels))
    data = check_event(event.name, event.data, limits)
    if event.socket_id:
        check_socket_id(event.socket_id)
    attributes = attributes_of(event.info) if event.info else ()
    options = event.options
    if options is None:
        options = DEFAULT_OPTIONS
    elif wrong := options.error():
        raise Refused(400, wrong)
    app, node = call.app, call.node
    if limits.publishes and not app.publishes.take(node.clock.monotonic(), min(len(channels), limits.publishes)):
        raise Refused(429, f"more than {limits.publishes} published events a second")

    stamp = node.stamp()
    node.metrics.events_in[API] += 1
    exclude = event.socket_id or ""
    counts = {}
    for name in channels:
        counts[name] = await node.publish(app, name, event.name, data, stamp, API, exclude, options)
    if attributes:
        return answer({"channels": {name: await channel_info(call, name, attributes) for name in channels}})
    if call.signed:
        return Response(200, b"{}")
    spent = time.perf_counter_ns() - call.request.started
    return Response(200, b'{"channels":%b,"msg-id":%d,"time":%d}' % (encode(counts), stamp[0], spent))


def check_event(name: str, data: msgspec.Raw, limits: Limits) -> bytes:
    """An event's data as JSON text. Raises Refused for a name or data that may not be published."""
    if not 1 <= len(name) <= limits.event_name:
        raise Refused(400, f"name has {len(name)} characters, allowed are 1 to {limits.event_name}")
    if reserved_event(name):
        raise Refused(400, "event names that begin with pusher: or pusher_internal: are reserved")
    text = bytes(data).strip()
    # A decoded string is never longer than its JSON text, so only a text over the limit is looked at more closely.
    if len(text) > limits.payload and (size := string_size(text)) > limits.payload:
        raise Refused(413, f"data has {size} bytes, the limit is {limits.payload}")
    return text


def check_socket_id(socket_id: str) -> None:
    if not SOCKET_ID.match(socket_id):
        raise Refused(400, f"socket_id {socket_id[:80]!r} is not NUMBER.NUMBER or prefix.NUMBER.NUMBER")


def attributes_of(info: str) -> tuple[str, ...]:
    """The attributes an `info` parameter asks for. Raises Refused(400) for one there is not."""
    wanted = tuple(part.strip() for part in info.split(","))
    for attribute in wanted:
        if attribute not in ATTRIBUTES:
            raise Refused(400, f"info {attribute[:80]!r} is unknown, allowed are {', '.join(ATTRIBUTES)}")
    return wanted


async def channel_info(call: Call, name: str, attributes: tuple[str, ...]) -> dict[str, int]:
    """Those attributes that a channel of this kind has."""
    occupancy = await call.node.channel(call.app, name)
    presence = kind_of(name).presence
    info = {}
    if "user_count" in attributes and presence:
        info["user_count"] = occupancy.users if occupancy else 0
    if "subscription_count" in attributes and not presence:
        info["subscription_count"] = occupancy.subscriptions if occupancy else 0
    return info
