"""Lists the channels of an app and the users of a channel: `GET /apps/{app}/channels` and `…/channels/{channel}`.

The APIs of Pusher and of Push1st have the same paths but different answers. A request gets Pusher's answer if the request is
signed, or if it has the parameter `info` or `filter_by_prefix` (Push1st API, section 4).
"""

import msgspec

from push1st.api.call import Call, answer
from push1st.api.events import EVENT_ATTRIBUTES, attributes_of
from push1st.api.history import check_history
from push1st.channels import kind_of
from push1st.errors import Refused
from push1st.jsontext import as_string
from push1st.messages import Response

_OF_ONE = (*EVENT_ATTRIBUTES, "cache")


async def listing(call: Call) -> Response:
    call.check_reads()
    params = call.params()
    if not (call.signed or "info" in params or "filter_by_prefix" in params):
        found = await call.node.channels(call.app)
        return answer([_head(one.channel) | {"sess_count": one.subscriptions} for one in found])
    prefix = params.get("filter_by_prefix", "")
    attributes = attributes_of(params["info"]) if params.get("info") else ()
    if "user_count" in attributes and not prefix.startswith("presence-"):
        raise Refused(400, "info=user_count needs filter_by_prefix to begin with presence-")
    listed: dict[str, dict[str, int]] = {}
    for one in await call.node.channels(call.app, prefix):
        info = listed[one.channel] = {}
        if "user_count" in attributes:
            info["user_count"] = one.users
        if "subscription_count" in attributes:
            info["subscription_count"] = one.subscriptions
    return answer({"channels": listed})


async def one(call: Call) -> Response:
    call.check_reads()
    (name,) = call.args
    call.check_channel_name(name)
    params = call.params()
    occupancy = await call.node.channel(call.app, name)
    kind = kind_of(name)
    if not (call.signed or "info" in params or "filter_by_prefix" in params):
        if occupancy is None:
            raise Refused(404, f"no client is subscribed to {name}")
        sessions = [{"id": one.id, "ip": one.ip} for one in await call.node.controller.listed(call.app, name)]
        return answer(_head(name) | {"sessions": sessions})
    wanted = [part.strip() for part in params.get("info", "").split(",") if part.strip()]
    attributes = attributes_of(",".join(wanted), _OF_ONE) if wanted else ()
    if "cache" in wanted and not kind.cache:
        raise Refused(400, f"info=cache is for cache channels, {name} is not one")
    if "user_count" in attributes and not kind.presence:
        raise Refused(400, f"info=user_count is for presence channels, {name} is not one")
    if "position" in attributes:
        check_history(call, name, 400)
    info: dict[str, object] = {"occupied": occupancy is not None}
    if "user_count" in attributes:
        info["user_count"] = occupancy.users if occupancy else 0
    if "subscription_count" in attributes:
        info["subscription_count"] = occupancy.subscriptions if occupancy else 0
    if "cache" in wanted:
        cached = await call.node.cached(call.app, name)
        info["cache"] = None if cached is None else {"data": msgspec.Raw(as_string(cached.message.data)), "ttl": cached.ttl}
    if "position" in attributes:
        info["position"] = str((await call.node.history.read(call.app.config.id, name, None, 1, reverse=True)).position)
    return answer(info)


async def users(call: Call) -> Response:
    """Serves `GET …/channels/{channel}/users`: the users on a presence channel."""
    call.check_reads()
    (name,) = call.args
    call.check_channel_name(name)
    if not kind_of(name).presence:
        raise Refused(400, f"only presence channels have users, {name} is not one")
    return answer({"users": [{"id": member.user_id} for member in await call.node.members(call.app, name)]})


def _head(name: str) -> dict[str, object]:
    """Returns the JSON fields that answers of Push1st's API contain for every channel. `close` is always "auto", because the
    server removes a channel that has no subscription.
    """
    return {"channel": name, "type": kind_of(name).type, "close": "auto"}
