"""Determines the identity of an MQTT client: the app, the client's name, the rights in its access token, and its user.

The user name begins with the key of an app and may continue with a colon and the client's name. If the user name begins with no
key, the whole user name is the client's name, and the app is `server.mqtt.app`. The password is an access token. If the app's
backend decides which clients may connect, the password may be any text, and the backend checks it.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec

from push1st import auth
from push1st.brokers.sessions import Owner
from push1st.channels import user_id_error
from push1st.config.model import AppConfig
from push1st.core.app import App
from push1st.core.decisions import MqttRequest
from push1st.errors import Disconnect, Refused
from push1st.messages import ClientRequest, SignedInUser
from push1st.protocols.mqtt.packets import ConnectPacket, ReasonCode
from push1st.transports.admission import admit
from push1st.transports.context import EdgeContext
from push1st.transports.mqtt import reasons
from push1st.transports.places import Crowded

_JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
"""the form of an access token"""
MAX_OWNERS = 1000
"""the number of owners that clients with equal rights share"""


class ConnectRefused(Exception):
    """The server rejects a CONNECT. `text`: the mistake, for the developer of the client."""

    def __init__(self, reason: ReasonCode, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason
        self.text = text


class MqttPeer(msgspec.Struct, frozen=True, gc=False):
    """The properties of a connection that exist before CONNECT.

    ip: the address of the client; "" on a Unix socket.
    crowded: the bound that the number of connections has reached; None if no bound is reached.
    key: the key of an app in the path of a WebSocket; None without such a key.
    handshake: the query and the headers of a WebSocket's handshake; None without WebSocket.
    certificate: the common name in the client's valid certificate; "" if the certificate has none or several; None without a
    certificate.
    """

    ip: str
    crowded: Crowded | None = None
    key: str | None = None
    handshake: ClientRequest | None = None
    certificate: str | None = None

    @property
    def origin(self) -> str | None:
        """The origin of the web page that opened the WebSocket; None for a client that is no web page."""
        return None if self.handshake is None else self.handshake.origin


ANONYMOUS = Owner("anonymous")


class MqttIdentity(msgspec.Struct, frozen=True):
    """A client whose CONNECT is valid, before the app's backend has decided.

    name: the client's name in its user name; "" without one.
    claims: the rights in the client's access token; None without a token.
    request: the fields of the CONNECT for the app's backend.
    is_decided: whether the app's backend decides.
    """

    app: App
    name: str
    claims: auth.Claims | None
    request: MqttRequest
    is_decided: bool

    @property
    def is_anonymous(self) -> bool:
        """Whether the client has proved no identity, after the backend has accepted the client."""
        return self.claims is None and self.request.certificate is None and not self.is_decided

    def owner(self, user: SignedInUser | None) -> Owner:
        """Returns the owner of the client id. user: the signed-in user of the client, or None."""
        if user is not None:
            return Owner("user", user.id)
        if self.claims is not None:
            return _owner_of(self.claims.channels)
        return Owner("name", self.name) if self.is_decided else ANONYMOUS


@lru_cache(MAX_OWNERS)
def _owner_of(channels: tuple[str, ...]) -> Owner:
    """Returns the owner of the clients whose tokens permit some channels. To save memory, all these clients share the object."""
    return Owner("token", hashlib.sha256("\0".join(channels).encode()).hexdigest())


def common_name(certificate: Mapping[str, Any]) -> str:
    """Returns the common name in the subject of a certificate (`SSLSocket.getpeercert`); "" for none or several names."""
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return names[0] if len(names) == 1 else ""


def identify(context: EdgeContext, packet: ConnectPacket, peer: MqttPeer) -> MqttIdentity:
    """Returns the identity of a client. Raises ConnectRefused."""
    if packet.authentication_method is not None:  # §3.1.2.11.9, §4.12
        raise ConnectRefused(ReasonCode.BAD_AUTHENTICATION_METHOD, "enhanced authentication is not supported")
    node, settings = context.node, context.config.server.mqtt
    found, name = _app(context, packet.username, peer.key)
    if found is None and peer.key is not None:
        raise ConnectRefused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "the path of the WebSocket does not contain the key of an app")
    if found is None:
        raise ConnectRefused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "the user name does not begin with the key of an app")
    try:
        app = admit(context, settings, found.key, peer.origin, peer.ip, peer.crowded)
    except Disconnect as end:
        full = peer.crowded is not None and not node.draining and end.code == 4100
        raise ConnectRefused(ReasonCode.QUOTA_EXCEEDED if full else reasons.of_connect(end.code), end.reason) from None
    claims = _claims(context, app, packet, peer.origin)
    user = None
    if peer.certificate is not None:
        if error := user_id_error(peer.certificate):
            raise ConnectRefused(ReasonCode.NOT_AUTHORIZED, error)
        user = SignedInUser(peer.certificate)
    if claims is not None and claims.sub is not None:
        if error := user_id_error(claims.sub):
            raise ConnectRefused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, error)
        user = SignedInUser(claims.sub)
    is_decided = "connect" in app.backend_decides
    if claims is None and not is_decided:
        if packet.password:
            raise ConnectRefused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "the password is not an access token")
        if app.config.authorized_only and peer.certificate is None:
            raise ConnectRefused(ReasonCode.NOT_AUTHORIZED, "this app requires an access token")
    return MqttIdentity(app, name, claims, _request(packet, name, claims, user, peer), is_decided)


def app_id(context: EdgeContext, packet: ConnectPacket, peer: MqttPeer) -> str:
    """Returns the id of a client's app; "" if the CONNECT names no app."""
    found, _ = _app(context, packet.username, peer.key)
    return "" if found is None else found.id


def _app(context: EdgeContext, username: str | None, path_key: str | None) -> tuple[AppConfig | None, str]:
    """Returns the app of a client, or None, and the client's name. path_key: see `MqttPeer.key`."""
    username = username or ""
    apps = context.node.apps
    key, _, name = username.partition(":")
    if path_key is not None:
        return apps.by_key(path_key), name if key == path_key else username
    found = apps.by_key(key) if key else None
    if found is not None:
        return found, name
    default = context.config.server.mqtt.app
    return (apps.by_id(default) if default else None), username


def _claims(context: EdgeContext, app: App, packet: ConnectPacket, origin: str | None) -> auth.Claims | None:
    """Returns the rights in the client's access token; None if its password is no valid access token. Raises ConnectRefused."""
    password, config, node = packet.password, app.config, context.node
    if not password or not config.secret or not _JWT.match(password):
        return None
    try:
        found = auth.check_access_token(config.secrets, config.id, password.decode(), node.clock.wall() // 1_000_000_000)
    except Refused as refused:
        if "connect" in app.backend_decides:  # the password may be the backend's own token
            return None
        node.metrics.refusals["access-token"] += 1
        app.counts.refusals += 1
        raise ConnectRefused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, refused.text) from None
    if not found.allows_origin(origin):
        raise ConnectRefused(ReasonCode.NOT_AUTHORIZED, "the access token is for the web pages of another origin")
    return found


def _request(
    packet: ConnectPacket,
    name: str,
    claims: auth.Claims | None,
    user: SignedInUser | None,
    peer: MqttPeer,
) -> MqttRequest:
    raw, password = b"null", None
    if claims is not None:
        raw = msgspec.json.encode({"channel": claims.channels, "sub": claims.sub, "exp": claims.exp})
    elif packet.password is not None:
        with suppress(UnicodeDecodeError):
            password = packet.password.decode()
    where = peer.handshake or ClientRequest()
    return MqttRequest(
        where.query,
        where.origin,
        where.cookie,
        where.authorization,
        where.user_agent,
        client_id=packet.client_id,
        username=None if packet.username is None else name,
        password=password,
        certificate=peer.certificate,
        claims=raw,
        user=user,
    )
