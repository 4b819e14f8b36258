"""What functions in Python are called with: events of hooks, and questions an app has a say in (`authorize`).

For the code of users: it imports nothing of the server, and runs in a process of its own.

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
    """data: the text the client sent; JSON, if it sent no text. user_id: on presence channels."""

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
    """A hook of Push1st (`hook`). event: register, unregister, join, leave or push. data: JSON text."""

    event: str
    app: str
    channel: str
    session: str
    data: str


# Questions (`authorize`)


class Connecting(msgspec.Struct, frozen=True, tag_field="on", tag="connect"):
    """query: of the URL, as it was sent. cookie, authorization, origin: headers; None: not sent."""

    app: str
    socket_id: str
    ip: str
    query: str
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None


class Subscribing(msgspec.Struct, frozen=True, tag_field="on", tag="subscribe"):
    """channel_data: what the client says of itself; not to be believed. user_id: whom it is signed in as."""

    app: str
    socket_id: str
    ip: str
    channel: str
    channel_data: str = ""
    user_id: str | None = None


class Publishing(msgspec.Struct, frozen=True, tag_field="on", tag="publish"):
    """user_id: of the member on a presence channel, or whom the client is signed in as."""

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
    """user: whom the client is signed in as (connect), or joins a presence channel as. data: instead of what it sent."""

    user: User | None = None
    data: Any = msgspec.UNSET


class Refuse(msgspec.Struct, frozen=True, omit_defaults=True):
    """code, message: what the client is told."""

    code: int | None = None
    message: str = ""


Answer = Allow | Refuse | bool
