"""The endpoint of the event creator, which publishes like `POST /apps/{app}/events` of the HTTP API, within the app's limits.

The body may have the field `user` in place of `channel`: the id of a signed-in user, who receives the event. The answer is
the answer of the HTTP API to a call without a signature, plus `notes`: the reasons why some clients cannot subscribe to the
channels.
"""

import time
from typing import Any

import msgspec

from push1st.api import events
from push1st.api.call import Call
from push1st.channels import subscription_note
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import Request, user_channel

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_user = msgspec.json.Decoder(str)
_answer = msgspec.json.Decoder(dict[str, Any])


class EventCreator:
    """Publishes events."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self.endpoints = (ConsoleEndpoint("POST", r"apps/([^/]+)/events", self._publish),)

    async def _publish(self, call: ConsoleCall) -> object:
        node, id = self._context.node, call.args[0]
        config = node.apps.by_id(id)
        if config is None:
            raise Refused(404, f"there is no app {id[:64]!r}")
        if not config.enable:
            raise Refused(403, f"app {id!r} is disabled")
        request = Request("POST", "", "", call.body, "", time.perf_counter_ns())
        asked = Call(node, node.app(config), request, (), False, False)
        fields = asked.body(_fields)
        user = ""
        if "user" in fields:
            if "channel" in fields or "channels" in fields:
                raise Refused(400, "user and channel are both given")
            user = asked.decode(_user, bytes(fields.pop("user")))
            fields["channel"] = msgspec.Raw(msgspec.json.encode(user_channel(user)))
            body = msgspec.json.encode(fields)
            asked = msgspec.structs.replace(asked, request=msgspec.structs.replace(request, body=body))
        answer = _answer.decode((await resolve(events.publish(asked))).body)
        channels = answer["channels"]
        self._context.action(call, "publish to user" if user else "publish", id, (user or ", ".join(channels))[:300])
        notes = (subscription_note(id, config.channels, name, config.limits.channel_name) for name in channels)
        return {**answer, "notes": [note for note in notes if note]}
