"""Requests decisions from an app's backend: whether a client may connect, subscribe or publish (configured by `authorize`).

`subscribe` and `publish` wait for the backend's reply, and raise `Refused` if the reply is a rejection or does not arrive.
"""

from typing import Protocol

import msgspec

from push1st.channels import user_id_error
from push1st.core.app import App, Client
from push1st.errors import Refused
from push1st.hooks import Decision, Hooks
from push1st.hooks.events import MQTT_CODES, Connecting, Publishing, Subscribing
from push1st.jsontext import string_size
from push1st.messages import ClientRequest, Publish, SignedInUser, Subscribe


class Publisher(Protocol):
    """The client that publishes an event: its id, and its address. Its connection may have ended."""

    @property
    def id(self) -> str: ...
    @property
    def ip(self) -> str: ...


class MqttRequest(ClientRequest, frozen=True, gc=False):
    """The fields of a CONNECT packet that the server sends to the app's backend.

    `username`: the user name without the app's key.
    `password`: None without a password, for a password that is not UTF-8, and for a valid access token.
    `certificate`: the common name in the client's certificate; None without a certificate.
    `claims`: the claims of a valid access token, as a JSON object; b"null" without such a token.
    """

    client_id: str = ""
    username: str | None = None
    password: str | None = None
    certificate: str | None = None
    claims: bytes = b"null"
    user: SignedInUser | None = None


def is_decided(app: App, channel: str) -> bool:
    """Returns whether the app's backend decides which clients may subscribe to a channel."""
    decides = app.backend_decides.get("subscribe")
    return decides is not None and not channel.startswith("#") and bool(decides(channel))


async def connect(hooks: Hooks, app: App, client: Client, request: ClientRequest) -> SignedInUser | None:
    """Returns the user in a decision that lets the client connect; None if this decision contains no user. Raises Refused."""
    question = Connecting(
        app.config.id, client.id, client.ip, request.query, request.origin, request.cookie, request.authorization
    )
    if isinstance(request, MqttRequest):
        question = msgspec.structs.replace(
            question,
            protocol="mqtt",
            client_id=request.client_id,
            username=request.username,
            password=request.password,
            certificate=request.certificate,
            claims=msgspec.Raw(request.claims),
        )
    answer = await hooks.decide(question)
    if answer.refused is not None:
        raise answer.refused
    if answer.user_id is None:
        return None
    if error := user_id_error(answer.user_id):
        raise Refused(400, error)
    return SignedInUser(answer.user_id, answer.user_info)


async def subscribe(hooks: Hooks, app: App, client: Client, command: Subscribe, user: SignedInUser | None) -> Decision:
    """Returns a decision that lets the client subscribe, or raises Refused. `user`: the signed-in user of the client, or None."""
    user_id = None if user is None else user.id
    answer = await hooks.decide(Subscribing(app.config.id, client.id, client.ip, command.channel, command.channel_data, user_id))
    if answer.refused is not None:
        raise answer.refused
    if answer.user_id is not None and (error := user_id_error(answer.user_id)):
        raise Refused(500, error)
    return answer


async def publish(hooks: Hooks, app: App, client: Publisher, command: Publish, user_id: str | None) -> bytes:
    """Returns the data to publish, which the backend may have replaced.

    `user_id`: the id of the client's user on the presence channel, or of the client's signed-in user; None without such a user.
    """
    answer = await hooks.decide(
        Publishing(app.config.id, client.id, client.ip, command.channel, command.event, msgspec.Raw(command.data), user_id)
    )
    if answer.refused is not None:
        raise answer.refused
    data = command.data if answer.data is None else answer.data
    limit = app.config.limits.payload
    if string_size(data) > limit:
        raise Refused(413, f"data has {string_size(data)} bytes, the limit is {limit}")
    return data


def close_code(code: int) -> int:
    """Returns the close code for a client that the app's backend has rejected. `code`: the code in the backend's reply.

    If a handshake ends with a code from 4200 to 4299, pusher-js reconnects at once; after 4100, pusher-js waits a second. So
    4100 replaces the codes from 4200 to 4299, and also 503, because a later attempt may succeed. Only an MQTT client is rejected
    with a reason code of MQTT, which stays as it is.
    """
    if code == 503 or 4200 <= code < 4300:
        return 4100
    return code if code >= 4000 or code in MQTT_CODES else 4009
