"""Publishes events: `POST /apps/{app}/events` and similar paths (Push1st API, section 3; Pusher protocol, section 9).

The endpoints check the whole request before they publish its first event.
"""

import re
import time
from collections.abc import Iterable

import msgspec

from push1st.api.call import Answer, Call, answer
from push1st.api.idempotency import count_repeats, key_of
from push1st.channels import RESERVED, kind_of
from push1st.eager import MaybeAwaitable, resolve
from push1st.errors import Refused
from push1st.jsontext import encode, object_text, string_size
from push1st.limits import Limits
from push1st.messages import API, DEFAULT_OPTIONS, MAX_HEADERS_BYTES, Options, Published, Response
from push1st.positions import Position

SOCKET_ID = re.compile(r"([^\x00-\x1f]{1,520}\.)?\d{1,20}\.\d{1,20}\Z", re.ASCII)
ATTRIBUTES = ("user_count", "subscription_count")
"""the attributes of a channel in a list of channels"""
EVENT_ATTRIBUTES = (*ATTRIBUTES, "position")
"""the attributes of a channel in the answer to an event"""


class Event(msgspec.Struct, gc=False):
    name: str
    data: msgspec.Raw
    channels: list[str] | None = None
    channel: str | None = None
    socket_id: str | None = None
    info: str | None = None
    options: Options | None = None
    headers: msgspec.Raw = msgspec.Raw(b"")
    idempotency_key: str | None = None


class BatchEvent(msgspec.Struct, gc=False):
    name: str
    data: msgspec.Raw
    channel: str
    socket_id: str | None = None
    info: str | None = None
    headers: msgspec.Raw = msgspec.Raw(b"")
    idempotency_key: str | None = None


class BatchRequest(msgspec.Struct, gc=False):
    batch: list[BatchEvent]


_IN_QUERY = ("name", "data", "channel", "socket_id", "info", "idempotency_key")
_DONE = Response(200, b"{}")
_event = msgspec.json.Decoder(Event)
_batch = msgspec.json.Decoder(BatchRequest)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def publish(call: Call) -> Answer:
    app, node = call.app, call.node
    event = _with_params(call) if call.has_params else call.body(_event)
    limits = app.config.limits
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
    exclude, options = event.socket_id or "", DEFAULT_OPTIONS
    if event.options is not None:
        exclude, options = event.options.with_socket_id(exclude)
        if wrong := options.error():
            raise Refused(400, wrong)
    if exclude and exclude == event.socket_id:
        check_socket_id(exclude)
    attributes = attributes_of(event.info, EVENT_ATTRIBUTES) if event.info else ()
    headers = object_text("headers", event.headers, MAX_HEADERS_BYTES) if event.headers else b""
    key, header = "", call.request.idempotency_key
    if header is not None or event.idempotency_key is not None:
        key = key_of(event.idempotency_key, header)
    if limits.publishes:
        check_rate(call, len(channels))

    stamp = node.stamp()
    app.counts.events_in[API] += 1
    counts: dict[str, int] = {}
    waiting: dict[str, MaybeAwaitable[Published]] = {}
    if attributes or key:
        for name in channels:
            waiting[name] = node.publish(app, name, event.name, data, stamp, API, exclude, options, None, headers, key)
    else:
        for name in channels:
            published = node.publish(app, name, event.name, data, stamp, API, exclude, options, None, headers)
            if isinstance(published, Published):
                counts[name] = published.count
            else:
                waiting[name] = published
        if not waiting:
            return _published(call, counts, stamp[0])
    narrowed = not call.signed and (exclude or options.delivery != "broadcast")
    reach = (exclude, options) if narrowed else None
    return _publish_slowly(call, counts, waiting, attributes, stamp[0], reach, key)


def _published(call: Call, counts: dict[str, int], id: int) -> Response:
    """Returns the answer to a publish request.

    counts: the number of receivers on each channel.
    id: the id of the messages.
    """
    if call.signed:
        return _DONE
    spent = time.perf_counter_ns() - call.request.started
    return Response(200, b'{"channels":%b,"msg-id":%d,"time":%d}' % (encode(counts), id, spent))


async def _publish_slowly(
    call: Call,
    counts: dict[str, int],
    waiting: dict[str, MaybeAwaitable[Published]],
    attributes: tuple[str, ...],
    id: int,
    reach: tuple[str, Options] | None,
    key: str,
) -> Response:
    """Completes a publish request that waits for the broker, has an idempotency key, or requests attributes of channels.

    counts: the number of receivers on each channel whose publish is complete.
    waiting: the publishes that are not complete; all publishes if the request has an idempotency key or requests attributes.
    reach: the arguments `exclude` and `options` of `Controller.reach`, if the answer needs the exact number of receivers.
    """
    results = dict(zip(waiting, await _all(waiting.values()), strict=True))
    header = count_repeats(results.values(), call.node.metrics) if key else b""
    if attributes:
        infos = {name: await channel_info(call, name, attributes, result) for name, result in results.items()}
        return answer({"channels": infos}, header)
    counts |= {name: result.count for name, result in results.items()}
    if reach and not all(
        isinstance(one, Published) for one in waiting.values()
    ):  # the counts of a shared broker include the excluded connections
        counts = {name: await call.node.controller.reach(call.app, name, *reach) for name in counts}
    if header:
        id = max(result.repeats for result in results.values())
    published = _published(call, counts, id)
    return msgspec.structs.replace(published, headers=header) if header else published


async def _all(publishes: Iterable[MaybeAwaitable[Published]]) -> list[Published]:
    """Waits until several messages are published; all messages together need only one round trip to the broker."""
    rest = iter(publishes)
    results = []
    try:
        for one in rest:
            results.append(await resolve(one))  # noqa: PERF401 - `rest` is needed later
    finally:
        for one in rest:  # after one call has failed, the results of the other calls are not needed
            if not isinstance(one, Published):
                one.close()
    return results


async def batch(call: Call) -> Response:
    """Serves `POST …/batch_events`, which publishes several events, each on one channel. The answer contains the requested
    attributes of the channels, in the order of the events.
    """
    events = call.body(_batch).batch
    limits = call.app.config.limits
    if not events:
        raise Refused(400, "batch is empty: a batch needs at least one event")
    if len(events) > limits.batch:
        raise Refused(400, f"Batch too large ({len(events)} > {limits.batch})")  # Pusher's libraries look for this text
    checked = []
    used: dict[tuple[str, str], int] = {}
    for index, event in enumerate(events):
        try:
            call.check_channel_name(event.channel)
            data = check_event(event.name, event.data, limits)
            if event.socket_id:
                check_socket_id(event.socket_id)
            headers = object_text("headers", event.headers, MAX_HEADERS_BYTES) if event.headers else b""
            attributes = attributes_of(event.info, EVENT_ATTRIBUTES) if event.info else ()
            checked.append((event, data, attributes, headers, _batch_key(call, event, index, used)))
        except Refused as refused:
            raise Refused(refused.code, f"batch[{index}]: {refused.text}") from refused
    if limits.publishes:
        check_rate(call, len(events))
    node = call.node
    call.app.counts.events_in[API] += len(events)
    results = await _all(
        [
            node.publish(
                call.app,
                event.channel,
                event.name,
                data,
                node.stamp(),
                API,
                event.socket_id or "",
                DEFAULT_OPTIONS,
                None,
                headers,
                key,
            )
            for event, data, _, headers, key in checked
        ]
    )
    header = count_repeats(results, node.metrics)
    if not any(attributes for _, _, attributes, _, _ in checked):
        return answer({}, header)
    infos = [
        await channel_info(call, event.channel, attributes, result) if attributes else {}
        for (event, _, attributes, _, _), result in zip(checked, results, strict=True)
    ]
    return answer({"batch": infos}, header)


def _batch_key(call: Call, event: BatchEvent, index: int, used: dict[tuple[str, str], int]) -> str:
    """Returns the idempotency key of an event of a batch; "" if the event has no key. Raises Refused(400).

    The header `Idempotency-Key` is the key of the whole batch. An event without a key of its own then gets the header's value
    with the event's index. A space separates the two parts, so no event has a key of its own that is equal.

    used: the channels and keys of earlier events, with the indices of these events.
    """
    key = key_of(event.idempotency_key, call.request.idempotency_key)
    if not key:
        return ""
    if event.idempotency_key is None:
        return f"{key} {index}"
    earlier = used.setdefault((event.channel, key), index)
    if earlier != index:
        raise Refused(400, f"batch[{earlier}] has the same channel and the same idempotency_key")
    return key


async def publish_body(call: Call) -> Response:
    """Serves `POST …/channels/{channel}/events?name=…`, which Pusher has deprecated. The request's body is the event's data."""
    (channel,) = call.args
    params = call.params()
    call.check_channel_name(channel)
    try:
        text = call.request.body.decode()
    except UnicodeDecodeError as exc:
        raise Refused(400, "the body is not UTF-8") from exc
    limits = call.app.config.limits
    data = check_event(params.get("name", ""), msgspec.Raw(encode(text)), limits)
    socket_id = params.get("socket_id", "")
    if socket_id:
        check_socket_id(socket_id)
    key = key_of(params.get("idempotency_key"), call.request.idempotency_key)
    if limits.publishes:
        check_rate(call, 1)
    call.app.counts.events_in[API] += 1
    node = call.node
    result = await resolve(
        node.publish(call.app, channel, params["name"], data, node.stamp(), API, socket_id, DEFAULT_OPTIONS, None, b"", key)
    )
    return Response(202, b"{}", headers=count_repeats((result,), node.metrics))


def _with_params(call: Call) -> Event:
    """Decodes an event. The query of the URL may contain the fields that are missing in the JSON body (Pusher protocol,
    section 9).
    """
    params = call.params()
    given: dict[str, bytes] = {name: encode(params[name]) for name in _IN_QUERY if name in params}
    if "channels[]" in params:
        given["channels"] = encode(call.param_list("channels[]"))
    if not given:
        return call.body(_event)
    fields = call.body(_fields) if call.request.body else {}
    if "channels" in fields or "channel" in fields:
        given.pop("channels", None)
        given.pop("channel", None)
    whole = {name: msgspec.Raw(value) for name, value in given.items()} | fields
    return call.decode(_event, encode(whole))


def check_event(name: str, data: msgspec.Raw, limits: Limits) -> bytes:
    """Returns the data of an event as JSON text. Raises Refused if the name or the data of the event is not allowed."""
    if not 1 <= len(name) <= limits.event_name:
        raise Refused(400, f"name has {len(name)} characters, allowed are 1 to {limits.event_name}")
    if name.startswith(RESERVED):
        raise Refused(400, "event names that begin with pusher: or pusher_internal: are reserved")
    text = bytes(data).strip()
    # A decoded string is never longer than its JSON text, so only a text that exceeds the limit is decoded.
    if len(text) > limits.payload and (size := string_size(text)) > limits.payload:
        # Pusher's libraries look for this text.
        raise Refused(
            413, f"The data content of this event exceeds the allowed maximum ({limits.payload} bytes): it has {size} bytes"
        )
    return text


def check_socket_id(socket_id: str) -> None:
    if not SOCKET_ID.match(socket_id):
        raise Refused(400, f"socket_id {socket_id[:80]!r} is not NUMBER.NUMBER or prefix.NUMBER.NUMBER")


def check_rate(call: Call, events: int) -> None:
    """Raises Refused(429) if the app exceeds its limit of published events. The token bucket of the
    limit never holds more tokens than the limit. So a request with more events takes only as many tokens as the limit.
    """
    most = call.app.config.limits.publishes
    if not call.app.publishes.take(call.node.clock.monotonic(), min(events, most)):
        raise Refused(429, f"more than {most} published events a second")


def attributes_of(info: str, allowed: tuple[str, ...] = ATTRIBUTES) -> tuple[str, ...]:
    """Returns the attributes that the parameter `info` lists. Raises Refused(400) for an attribute that is not allowed."""
    wanted = tuple(part.strip() for part in info.split(","))
    for attribute in wanted:
        if attribute not in allowed:
            raise Refused(400, f"info {attribute[:80]!r} is unknown, allowed are {', '.join(allowed)}")
    return wanted


async def channel_info(call: Call, name: str, attributes: tuple[str, ...], published: Published) -> dict[str, object]:
    """Returns the requested attributes of a channel, without the attributes that channels of its kind do not have.

    published: the result of the event on the channel; the position is the position of this event.
    """
    info: dict[str, object] = {}
    if "user_count" in attributes or "subscription_count" in attributes:
        occupancy = await call.node.channel(call.app, name)
        if "user_count" in attributes and kind_of(name).presence:
            info["user_count"] = occupancy.users if occupancy else 0
        if "subscription_count" in attributes:
            info["subscription_count"] = occupancy.subscriptions if occupancy else 0
    if "position" in attributes and published.epoch:
        info["position"] = str(Position(published.epoch, published.offset))
    return info
