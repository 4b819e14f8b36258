"""Endpoints over HTTP and HTTPS: each delivery is one POST request, on a persistent connection.

The transport does not follow redirects, because only the configured URL may receive the signed body. Only the response's
status shows whether the endpoint accepted a delivery. To reuse the connection, the transport reads the response's body.
If the body is longer than `MAX_READ` bytes, the transport closes the connection.
"""

import os
import socket
import ssl

import aiohttp

from push1st import auth
from push1st.hooks import NotDelivered, Target

MAX_READ = 65_536
MAX_CONNECTIONS = 100
KEEP_SECONDS = 30


class Web:
    """A `HookTransport` that sends requests over HTTP."""

    def __init__(self, target: Target) -> None:
        self._target = target
        own = {
            "Content-Type": "application/json",  # without a charset, because Pusher's library for Node accepts only this value
            "Accept-Encoding": "identity",  # The transport does not decompress responses.
            **({"X-Pusher-Key": target.key} if target.secret else {}),
        }
        taken = {"x-pusher-signature", "x-push1st-delivery", *map(str.lower, own)}
        headers = {name: text for name, text in target.headers if name.lower() not in taken}
        agent = {} if "user-agent" in map(str.lower, headers) else {"User-Agent": "push1st"}
        self._headers = agent | headers | own
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=target.timeout),
            auto_decompress=False,
        )

    async def deliver(self, id: str, body: bytes) -> None:
        await self._post(body, {"X-Push1st-Delivery": id})

    async def request(self, body: bytes) -> bytes:
        return await self._post(body, {})

    async def _post(self, body: bytes, more: dict[str, str]) -> bytes:
        target = self._target
        headers = self._headers | more
        if target.secret:
            headers["X-Pusher-Signature"] = auth.body_signature(target.secret, body)
        try:
            async with self._session.post(target.url, data=body, headers=headers, allow_redirects=False) as response:
                read = await self._read(response)
                if not 200 <= response.status < 300:
                    raise NotDelivered("refused", f"answered {response.status}", response.status)
                return read
        except TimeoutError:
            raise NotDelivered("timed-out", f"no answer within {target.timeout:g} s") from None
        except (aiohttp.ClientSSLError, ssl.SSLError) as exc:
            raise NotDelivered("untrusted", f"TLS failed: {_reason(exc)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise NotDelivered("unreachable", _reason(exc)) from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts = []
        left = MAX_READ
        while left > 0 and (part := await response.content.read(left)):
            parts.append(part)
            left -= len(part)
        if left <= 0:
            response.close()
        return b"".join(parts)

    async def close(self) -> None:
        await self._session.close()


def _reason(exc: BaseException) -> str:
    """Describes a failure without any text that could contain the URL and its password."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return str(exc.certificate_error)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"cannot connect: {_system_text(exc.os_error)}"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer"
    return _system_text(exc) if isinstance(exc, OSError) else type(exc).__name__


def _system_text(exc: OSError) -> str:
    """Returns the system's text for an error, such as `Connection refused`, without asyncio's text `Connect call failed (…)`."""
    if exc.errno and not isinstance(exc, socket.gaierror):  # the error numbers of a `gaierror` are not those of `errno`
        return os.strerror(exc.errno)
    return exc.strerror or type(exc).__name__
