"""Endpoints over HTTP and HTTPS: one POST a delivery, on connections that are kept.

Redirects are not followed: the body is signed for the one that was configured. Of an answer to a delivery the status
counts; its body is read, up to `MAX_READ`, only so that the connection can be used again.
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
    """A `HookTransport`. Its session is made with its first request."""

    def __init__(self, target: Target) -> None:
        self._target = target
        own = {
            "Content-Type": "application/json",  # exactly: the Node library compares it (Pusher protocol, section 9)
            "Accept-Encoding": "identity",  # answers are read as they come
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

    async def tell(self, id: str, body: bytes) -> None:
        await self._post(body, {"X-Push1st-Delivery": id})

    async def ask(self, body: bytes) -> bytes:
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
                    raise NotDelivered("refused", f"answered {response.status}")
                return read
        except TimeoutError:
            raise NotDelivered("timed-out", f"no answer within {target.timeout:g} s") from None
        except (aiohttp.ClientSSLError, ssl.SSLError) as failure:
            raise NotDelivered("untrusted", f"TLS failed: {_reason(failure)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            raise NotDelivered("unreachable", _reason(failure)) from None

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


def _reason(failure: BaseException) -> str:
    """What went wrong, in words that cannot hold a URL with its password."""
    if isinstance(failure, aiohttp.ClientConnectorCertificateError):
        return str(failure.certificate_error)
    if isinstance(failure, aiohttp.ClientConnectorError):
        return f"cannot connect: {_of_the_system(failure.os_error)}"
    if isinstance(failure, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer"
    return _of_the_system(failure) if isinstance(failure, OSError) else type(failure).__name__


def _of_the_system(failure: OSError) -> str:
    """`Connection refused`, where asyncio says `Connect call failed ('127.0.0.1', 5000)`."""
    if failure.errno and not isinstance(failure, socket.gaierror):  # whose numbers are its own
        return os.strerror(failure.errno)
    return failure.strerror or type(failure).__name__
