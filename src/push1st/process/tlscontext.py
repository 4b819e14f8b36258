"""TLS for the listeners of a worker, with limits for handshakes and for the time that decryption takes."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from push1st.config.model import Ssl
from push1st.config.mqtt import MqttSsl
from push1st.process.tls import load_authorities, load_pair
from push1st.transports.http import HttpConnection
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.tls import Decryption, Records


class ReportedRecords(Records):
    """The server's side of a TLS connection, which reports a failed handshake."""

    context: "TlsKeys"

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as exc:
            self.context.fail(exc.reason or "unknown")
            raise


class TlsKeys(ssl.SSLContext):
    """A certificate with its key, and the authorities of client certificates. The object does not change.

    fail: a function that counts and logs a failed handshake. It takes OpenSSL's name of the reason.
    """

    sslobject_class = ReportedRecords
    fail: Callable[[str], None]


class TlsContext(ssl.SSLContext):
    """The TLS context of a listener. The context rejects a handshake if the process has reached its limit of file descriptors.

    The listener cannot check this limit: it gets a connection only after the handshake, which already needs a descriptor.

    A listener keeps its context for ever, so a renewed certificate replaces `keys` (decision 0028). New connections use the new
    certificate, and older connections go on.

    has_room: whether the file descriptor of the newest accepted connection is within the limit.
    refuse: a function that counts a rejected handshake.
    decryption: the object that limits how long the connections may decrypt data in each turn of the event loop.
    """

    has_room: bool
    refuse: Callable[[], None]
    keys: TlsKeys
    decryption: Decryption

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **options: Any) -> ssl.SSLObject:
        if not self.has_room:
            self.refuse()
            raise ConnectionAbortedError("no file descriptor is left")
        records = self.keys.wrap_bio(incoming, outgoing, *arguments, **options)
        assert isinstance(records, Records)
        records.follow(incoming, self.decryption)
        return records


class TlsConnection(HttpConnection):
    """An HTTP connection over TLS."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("ssl_object").attach(transport)
        super().connection_made(transport)


class TlsMqttConnection(MqttConnection):
    """An MQTT connection over TLS."""

    __slots__ = ()

    def begin(self, transport: asyncio.Transport, ip: str) -> None:
        transport.get_extra_info("ssl_object").attach(transport)
        super().begin(transport, ip)


def make_context(keys: TlsKeys, refuse: Callable[[], None], decryption: Decryption) -> TlsContext:
    """Returns the TLS context of a listener."""
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    context.keys, context.refuse, context.decryption = keys, refuse, decryption
    return context


def make_keys(settings: Ssl | MqttSsl, fail: Callable[[str], None], *, asks: bool) -> TlsKeys:
    """Loads the files of a listener. Raises TlsFileError if a file cannot be used.

    asks: whether OpenSSL may ask the terminal for the password of a key, which stops this process until the answer.
    """
    keys = TlsKeys(ssl.PROTOCOL_TLS_SERVER)
    keys.fail = fail
    keys.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client may offer no protocol, or only other protocols (RFC 7301). Such a client is not rejected.
    keys.set_alpn_protocols(["mqtt" if isinstance(settings, MqttSsl) else "http/1.1"])
    load_pair(keys, settings.cert, settings.key, asks=asks)
    if isinstance(settings, MqttSsl) and settings.ca:
        load_authorities(keys, settings.ca)
        keys.verify_mode = ssl.CERT_REQUIRED if settings.verify == "required" else ssl.CERT_OPTIONAL
    return keys
