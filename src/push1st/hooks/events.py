"""The arguments of functions in Python: events of hooks, and requests for a decision (`authorize`).

Users import this module in their functions. So it imports no other module of the server, and child processes load it too.

    from push1st.hooks.events import MemberAdded, Event

    def on_event(event: Event) -> None:
        if isinstance(event, MemberAdded):
            print(event.user_id, "is on", event.channel)
"""

from typing import Any

import msgspec

# Pusher's events (`webhooks`)


class ChannelOccupied(msgspec.Struct, frozen=True, tag_field="name", tag="channel_occupied"):
    app: str
    channel: str


class ChannelVacated(msgspec.Struct, frozen=True, tag_field="name", tag="channel_vacated"):
    app: str
    channel: str


class MemberAdded(msgspec.Struct, frozen=True, tag_field="name", tag="member_added"):
    app: str
    channel: str
    user_id: str


class MemberRemoved(msgspec.Struct, frozen=True, tag_field="name", tag="member_removed"):
    app: str
    channel: str
    user_id: str


class ClientEvent(msgspec.Struct, frozen=True, tag_field="name", tag="client_event"):
    """An event that a client published.

    data: the text that the client sent, or JSON for data of another type.
    user_id: of the member on a presence channel.
    """

    app: str
    channel: str
    event: str
    data: str
    socket_id: str
    user_id: str | None = None


class CacheMiss(msgspec.Struct, frozen=True, tag_field="name", tag="cache_miss"):
    app: str
    channel: str


class SubscriptionCount(msgspec.Struct, frozen=True, tag_field="name", tag="subscription_count"):
    app: str
    channel: str
    subscription_count: int


Event = ChannelOccupied | ChannelVacated | MemberAdded | MemberRemoved | ClientEvent | CacheMiss | SubscriptionCount


class Triggered(msgspec.Struct, frozen=True):
    """An event of Push1st's hook (`hook`).

    event: register, unregister, join, leave or push.
    data: JSON text.
    """

    event: str
    app: str
    channel: str
    session: str
    data: str


# Requests for a decision (`authorize`)


class Connecting(msgspec.Struct, frozen=True, tag_field="on", tag="connect"):
    """A client connects.

    query: of the URL, as the client sent it.
    origin, cookie, authorization: headers; None if the client did not send the header.
    """

    app: str
    socket_id: str
    ip: str
    query: str
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None


class Subscribing(msgspec.Struct, frozen=True, tag_field="on", tag="subscribe"):
    """A client subscribes to a channel.

    channel_data: from the client, unsigned; do not trust it.
    user_id: of the user as which the client is signed in.
    """

    app: str
    socket_id: str
    ip: str
    channel: str
    channel_data: str = ""
    user_id: str | None = None


class Publishing(msgspec.Struct, frozen=True, tag_field="on", tag="publish"):
    """A client publishes an event.

    user_id: of the member on a presence channel, or of the user as which the client is signed in.
    """

    app: str
    socket_id: str
    ip: str
    channel: str
    event: str
    data: Any
    user_id: str | None = None


Question = Connecting | Subscribing | Publishing


class User(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    info: Any = None


class Allow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Allows the operation.

    user: as which the client is signed in (`connect`), or joins a presence channel (`subscribe`).
    data: replaces the data of the event (`publish`).
    """

    user: User | None = None
    data: Any = msgspec.UNSET


class Refuse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rejects the operation. code, message: of the error that the client receives."""

    code: int | None = None
    message: str = ""


Answer = Allow | Refuse | bool
