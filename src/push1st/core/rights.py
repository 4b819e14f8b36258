"""The rights of a client: to subscribe to a channel, to be a member, to publish an event, and to sign in as a user.

The functions are pure: they take the app's configuration and the client's properties, and raise `Refused` if a right is missing.
The session checks the limits that depend on time, such as events a second.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from push1st import auth
from push1st.channels import PUBLIC, RESERVED, Kind, covers, kind_of, pusher_name_error, user_id_error, wide_name_error
from push1st.config.model import AppConfig
from push1st.errors import Refused
from push1st.jsontext import decode, encode, string_size
from push1st.messages import Member, Publish, SignedInUser, SignIn, Subscribe, user_channel

MAX_MEMBER_BYTES = 1024
"""the maximum number of bytes of `channel_data`, which describes a presence member (Pusher protocol, section 8)"""
MAX_WATCHLIST = 100
"""a watchlist's maximum number of users; further users are ignored, and the client gets an error (Pusher protocol, section 5)"""


class Claimant(Protocol):
    """The properties of a session that determine its rights.

    `claims`: the rights that the client's access token grants; None for a client without a token.
    `push`: the types of channels to which a raw client may publish; None for a Pusher client.
    `lenient`: whether a client may subscribe to a presence channel without being a member.
    """

    @property
    def id(self) -> str: ...
    @property
    def claims(self) -> auth.Claims | None: ...
    @property
    def push(self) -> frozenset[str] | None: ...
    @property
    def lenient(self) -> bool: ...
    @property
    def user(self) -> SignedInUser | None: ...


class ChannelData(msgspec.Struct, gc=False):
    user_id: str | int
    user_info: msgspec.Raw = msgspec.Raw(b"null")


class UserData(msgspec.Struct, gc=False):
    id: str | int
    user_info: msgspec.Raw = msgspec.Raw(b"null")
    watchlist: list[str | int] | None = None


class Identity(msgspec.Struct, frozen=True, gc=False):
    """A signed-in user whose signature is valid.

    `user_data`: JSON signed by the backend, with the user's id as a JSON string. `is_cut`: whether the watchlist was shortened.
    `place`: the place of the secret that signed `user_data` (see `auth`).
    """

    user: SignedInUser
    user_data: str
    is_cut: bool
    place: int


_user_data = msgspec.json.Decoder(UserData)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_channel_data = msgspec.json.Decoder(ChannelData)


def to_subscribe(
    client: Claimant, config: AppConfig, command: Subscribe, decides: Callable[[str], object] | None
) -> tuple[Kind, int | None]:
    """Returns the kind of a channel if a client may subscribe to the channel. Otherwise raises Refused.

    Also returns the place of the secret that signed the subscription (see `auth`); None if the channel needs no signature.

    `decides`: a function that returns whether the app's backend decides about subscriptions to a channel; then the client needs
    no signature and no token. If `decides` is None, the backend makes no such decisions.
    """
    name = command.channel
    if name.startswith("#"):
        if client.user is not None and name == user_channel(client.user.id):
            return PUBLIC, None
        raise Refused(403, "channel names that begin with # are reserved")
    error = pusher_name_error(name, config.limits.channel_name) if client.push is None else wide_name_error(name)
    if error:
        raise Refused(400, error)
    if client.push is not None:
        return to_read(client.claims, config, name, decides), None
    kind = _kind(config, name)
    if not kind.needs_auth or (decides is not None and decides(name)):
        return kind, None
    place = auth.check_channel(config.key, config.secrets, client.id, name, command.auth, command.channel_data)
    if place is None:
        signed = f"{client.id}:{name}:channel_data" if command.channel_data else f"{client.id}:{name}"
        raise Refused(401, f"Invalid signature: auth must be the app key, a colon and the HMAC SHA256 in hex of {signed}")
    return kind, place


def to_subscribe_topic(client: Claimant, config: AppConfig, channel: str, decides: Callable[[str], object] | None) -> Kind:
    """Returns the kind of a topic's channel if an MQTT client may subscribe to the topic. Otherwise raises Refused.

    `decides`: see `to_subscribe`.
    """
    if not channel.startswith("#"):
        return to_read(client.claims, config, channel, decides)
    if client.user is not None and channel == user_channel(client.user.id):
        return PUBLIC
    raise Refused(403, "the topic belongs to another user")


def to_read(claims: auth.Claims | None, config: AppConfig, channel: str, decides: Callable[[str], object] | None) -> Kind:
    """Returns the kind of a channel if a token or the app's backend lets a client read the channel. Otherwise raises Refused.

    `claims`: the rights in the client's access token, or None. `decides`: see `to_subscribe`.
    """
    kind = _kind(config, channel)
    if kind.needs_auth and not (decides is not None and decides(channel)) and (claims is None or not claims.allows(channel)):
        raise Refused(401, f"no access token that allows {channel}")
    return kind


def may_grant(config: AppConfig, filter: str) -> bool:
    """Returns whether the app's backend may permit all channels that match a filter with wildcards.

    The backend may permit a filter whose first level has no wildcard, and a prefix such as `private-`. So all channels that match
    the filter have this prefix, and none of them is public. `filter`: its levels are separated by dots.
    """
    kind = kind_of(filter)
    return kind.needs_auth and covers(config.channels, kind)


def _kind(config: AppConfig, channel: str) -> Kind:
    kind = kind_of(channel)
    if not covers(config.channels, kind):
        raise Refused(403, f"this app has no {kind.type} channels")
    return kind


def may_subscribe(client: Claimant, config: AppConfig, channel: str, decides: Callable[[str], object] | None) -> bool:
    """Returns whether a client that sends no signature may subscribe to a channel. `decides`: see `to_subscribe`."""
    try:
        to_subscribe(client, config, Subscribe(channel), decides)
    except Refused:
        return False
    return True


def member(client: Claimant, channel_data: str) -> Member | None:
    """Returns the presence member that a client becomes when it subscribes; None for a lenient client without valid data.

    Raises Refused if the data of the member is invalid or too long (Pusher protocol, section 8).
    """
    user = client.user if not channel_data else None  # without channel_data, the member is the signed-in user (section 3)
    if (len(channel_data.encode()) if user is None else len(user.info)) > MAX_MEMBER_BYTES:
        raise Refused(413, f"channel_data is over {MAX_MEMBER_BYTES} bytes")
    if user is not None:
        found = Member(user.id, user.info)
    else:
        try:
            data = decode(_channel_data, channel_data)
        except (msgspec.DecodeError, RecursionError) as exc:
            if client.lenient:
                return None
            raise Refused(400, f'channel_data must be JSON with "user_id" and "user_info": {exc}') from exc
        found = Member(str(data.user_id), bytes(data.user_info).strip())
    error = user_id_error(found.user_id)
    if error and not client.lenient:
        raise Refused(400, error)
    return None if error else found


def to_publish(client: Claimant, config: AppConfig, command: Publish, is_subscribed: bool) -> None:
    """Raises Refused if a client may not publish an event. `is_subscribed`: whether the client is subscribed to the channel."""
    limits = config.limits
    channel, event = command.channel, command.event
    kind = kind_of(channel)
    if client.push is None:
        if not config.client_messages:
            raise Refused(403, "client events are not enabled for this app")
        if not kind.needs_auth:
            raise Refused(403, "client events are for private and presence channels")
        if kind.encrypted:
            raise Refused(403, "client events are not allowed on encrypted channels: they would be delivered unencrypted")
    elif not covers(client.push, kind):
        raise Refused(403, f"publishing to {kind.type} channels is not allowed here")
    if not is_subscribed:
        raise Refused(403, f"not subscribed to {channel[:200]}")
    if not event or len(event) > limits.event_name:
        raise Refused(400, f"an event name has 1 to {limits.event_name} characters")
    if event.startswith(RESERVED):
        raise Refused(400, "event names that begin with pusher: or pusher_internal: are reserved")
    # A decoded string is never longer than its JSON text, so only a long text must be measured.
    if len(command.data) > limits.payload and (size := string_size(command.data)) > limits.payload:
        raise Refused(413, f"data has {size} bytes, the limit is {limits.payload}")


def to_publish_topic(
    claims: auth.Claims | None, push: frozenset[str], config: AppConfig, channel: str, decides: Callable[[str], object] | None
) -> None:
    """Raises Refused if an MQTT client may not publish to a topic's channel. The client need not be subscribed.

    `claims`: the rights in the client's access token, or None. `push`: the types of channels to which the client may publish.
    `decides`: a function that returns whether the app's backend decides about events on a channel; None: about no events.
    """
    if channel.startswith("#"):
        raise Refused(403, "only the API publishes to users")
    kind = to_read(claims, config, channel, decides)
    if not covers(push, kind):
        raise Refused(403, f"publishing to {kind.type} channels is not allowed here")
    if kind.encrypted:
        raise Refused(403, "the server cannot encrypt events for encrypted channels")


def to_sign_in(client: Claimant, config: AppConfig, command: SignIn) -> Identity:
    """Returns the identity of a client that signs in (Pusher protocol, section 5). Raises Refused."""
    place = auth.check_user(config.key, config.secrets, client.id, command.user_data, command.auth)
    if place is None:
        signed = f"{client.id}::user::user_data"
        raise Refused(401, f"Invalid signature: auth must be the app key, a colon and the HMAC SHA256 in hex of {signed}")
    try:
        data = decode(_user_data, command.user_data)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Refused(400, f'user_data must be JSON with "id", a text or a whole number: {exc}') from exc
    id = str(data.id)
    if error := user_id_error(id):
        raise Refused(400, error)
    if client.user is not None and client.user.id != id:
        raise Refused(401, f"this connection is signed in as {client.user.id!r} already")
    wanted = list(dict.fromkeys(map(str, data.watchlist or ())))
    watchlist = tuple(one for one in wanted[:MAX_WATCHLIST] if not user_id_error(one))
    user_data = command.user_data if isinstance(data.id, str) else _with_id(command.user_data, id)
    return Identity(SignedInUser(id, bytes(data.user_info).strip(), watchlist), user_data, len(wanted) > MAX_WATCHLIST, place)


def _with_id(user_data: str, id: str) -> str:
    """Returns user data with the id as a JSON string, because pusher-js ignores a sign-in whose id is not a string."""
    fields = decode(_fields, user_data) | {"id": msgspec.Raw(encode(id))}
    return encode(fields).decode()
