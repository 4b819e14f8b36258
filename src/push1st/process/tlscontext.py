"""TLS for the listeners of a worker, with limits for handshakes and for the time that decryption takes."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from push1st.config.model import Ssl
from push1st.errors import ConfigError
from push1st.transports.http import HttpConnection
from push1st.transports.tls import Decryption, Records


class TlsContext(ssl.SSLContext):
    """The TLS context of a listener. The context rejects a handshake if the process has reached its limit of file descriptors.

    The listener cannot check this limit: it gets a connection only after the handshake, which already needs a descriptor.

    has_room: whether the file descriptor of the newest accepted connection is within the limit.
    refuse: a function that counts a rejected handshake.
    decryption: the object that limits how long the connections may decrypt data in each turn of the event loop.
    """

    sslobject_class = Records
    has_room: bool
    refuse: Callable[[], None]
    decryption: Decryption

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **options: Any) -> ssl.SSLObject:
        if not self.has_room:
            self.refuse()
            raise ConnectionAbortedError("no file descriptor is left")
        records = super().wrap_bio(incoming, outgoing, *arguments, **options)
        assert isinstance(records, Records)
        records.follow(incoming, self.decryption)
        return records


class TlsConnection(HttpConnection):
    """An HTTP connection over TLS."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("ssl_object").attach(transport)
        super().connection_made(transport)


def make_context(settings: Ssl, refuse: Callable[[], None], decryption: Decryption) -> TlsContext:
    """Returns the TLS context of a listener with its certificate. Raises ConfigError if the certificate cannot be used."""
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    context.refuse = refuse
    context.decryption = decryption
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.cert, settings.key)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"cannot use the certificate {settings.cert} with the key {settings.key}: {exc}") from exc
    return context
