"""The arguments of users' Python functions: events of hooks, and requests for a decision (`authorize`).

Users import this module, and child processes load it. So `events` imports no other module of the server.

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

    data: the string that the client sent; if the client sent another JSON value, the JSON text of this value.
    user_id: the id of the member that published the event, if the channel is a presence channel.
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
    """An event of Push1st's hook (the key `hook` of an app's configuration).

    event: the name of the trigger: register, unregister, join, leave or push.
    data: the data of the event, as JSON text.
    """

    event: str
    app: str
    channel: str
    session: str
    data: str


# Requests for a decision (`authorize`)

MQTT_CODES = range(128, 163)
"""the reason codes of MQTT 5.0 that a rejection may contain"""


class Connecting(msgspec.Struct, frozen=True, tag_field="on", tag="connect"):
    """A client connects.

    query: the query of the URL that the client sent.
    origin, cookie, authorization: HTTP headers of the client; None for a header that the client did not send.

    The other fields have a value only for MQTT clients:

    protocol: `mqtt`.
    client_id: the client id.
    username: the user name without the app's key; None without a user name.
    password: None without a password, for a password that is not UTF-8, and for a valid access token.
    certificate: the common name in the client's certificate; None without a certificate.
    claims: the claims of a valid access token; None without such a token.
    """

    app: str
    socket_id: str
    ip: str
    query: str
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None
    protocol: str | msgspec.UnsetType = msgspec.UNSET
    client_id: str | msgspec.UnsetType = msgspec.UNSET
    username: str | msgspec.UnsetType | None = msgspec.UNSET
    password: str | msgspec.UnsetType | None = msgspec.UNSET
    certificate: str | msgspec.UnsetType | None = msgspec.UNSET
    claims: Any | msgspec.UnsetType = msgspec.UNSET


class Subscribing(msgspec.Struct, frozen=True, tag_field="on", tag="subscribe"):
    """A client subscribes to a channel.

    channel_data: the member data from the client; it is not signed, so do not trust it.
    user_id: the id of the client's signed-in user.
    """

    app: str
    socket_id: str
    ip: str
    channel: str
    channel_data: str = ""
    user_id: str | None = None


class Publishing(msgspec.Struct, frozen=True, tag_field="on", tag="publish"):
    """A client publishes an event.

    user_id: on a presence channel, the id of the member that publishes; on other channels, the id of the signed-in user.
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

    user: the client is signed in as this user (`connect`), or joins a presence channel as this user (`subscribe`).
    data: the JSON value that replaces the data of the event (`publish`).
    """

    user: User | None = None
    data: Any = msgspec.UNSET


class Refuse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rejects the operation. The client receives an error with `code` and `message`."""

    code: int | None = None
    message: str = ""


Answer = Allow | Refuse | bool
