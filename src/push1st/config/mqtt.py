"""The settings of MQTT as typed, frozen structs. This module reads no files and opens no sockets."""

from typing import Literal

import msgspec

from push1st.config.addresses import Listen, Networks

MAX_KEEP_ALIVE = 65_535
"""the maximum keep alive in seconds, because MQTT has two bytes for it (MQTT 5.0, section 3.1.2.10)"""


class MqttSsl(msgspec.Struct, frozen=True, kw_only=True):
    """The TLS of the addresses `tls://…`. All paths are absolute.

    key, cert: the files of the private key and of the certificate; if both are "", the certificate is self-signed.
    ca: the file with the certificates of the authorities that sign client certificates; "": clients need no certificate.
    verify: whether a client must have a certificate, if `ca` is set.
    """

    key: str = ""
    cert: str = ""
    ca: str = ""
    verify: Literal["required", "optional"] = "required"


class Mqtt(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of MQTT.

    listen: the addresses for MQTT without WebSockets; empty: the server opens no such address.
    path: the path of MQTT over WebSockets, with a slash at both ends.
    app: the id of the app of clients whose user name begins with no app's key; "": the server rejects such clients.
    activity_timeout: the maximum keep alive of MQTT 5.0 clients in seconds, at most `MAX_KEEP_ALIVE`.
    push: types of channels to which clients may publish; `private` includes `protected`.
    anonymous_push: types of channels to which anonymous clients may publish: `push` if the configuration contains `push`, and
    otherwise no types.
    whitelist: addresses that may connect; empty: all addresses.
    max_payload: maximum number of bytes of one packet from a client (Maximum Packet Size).
    session_expiry: maximum number of seconds for which a session waits for its client to reconnect.
    inflight: maximum number of unacknowledged QoS 1 and QoS 2 messages of a client, in each direction.
    queue: maximum number of messages that wait for a client; if the queue is full, the server drops the oldest message.
    topic_aliases: maximum number of topic aliases of a connection, in each direction.
    publishes: maximum number of messages that a connection publishes in a second; 0 stands for unlimited.
    event: the name of an event whose publisher sends no name.
    proxy_protocol: whether connections to `tcp://…` and `tls://…` must begin with a PROXY header of one of `server.proxies`.
    """

    listen: tuple[Listen, ...] = ()
    ssl: MqttSsl = MqttSsl()
    path: str = "/mqtt/"
    app: str = ""
    activity_timeout: int = 3600
    push: frozenset[str] = frozenset({"public", "private", "presence"})
    anonymous_push: frozenset[str] = frozenset()
    whitelist: Networks = Networks()
    max_payload: int = 65_400
    session_expiry: int = 604_800
    inflight: int = 20
    queue: int = 1_000
    topic_aliases: int = 10
    publishes: int = 1_000
    event: str = "message"
    proxy_protocol: bool = False

    @property
    def is_secure(self) -> bool:
        """Whether one of the addresses uses TLS."""
        return any(address.scheme == "tls" for address in self.listen)
