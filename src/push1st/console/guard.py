"""The checks of a request that need no session: Host, Origin and the Fetch metadata; and the headers of every answer.

A web page of another site can make a browser send requests to the console. The browser names the page's origin in `Origin` and
`Sec-Fetch-Site`, and the page cannot add the header `Push1st-Console` without the console's permission, which it never gives
(Fetch, CORS preflight). The check of `Host` rejects requests of web pages whose domain name resolves to the console's address
(DNS rebinding).
"""

from collections.abc import Mapping

from push1st.errors import Refused
from push1st.transports.caller import is_own_name

NEEDED = frozenset((b"if-none-match", b"push1st-console", b"sec-fetch-mode", b"sec-fetch-site"))
"""the headers that the console needs, beside those of `protocols.http`"""
HEADERS = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'\r\n"
    b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"
)
NO_STORE = HEADERS + b"Cache-Control: no-store\r\n"
SECURE_COOKIE, PLAIN_COOKIE = "__Host-push1st-", "push1st-console-"
"""the beginning of the name of the cookie"""
_PORTS = {"http": 80, "https": 443}
_OWN_SITES = (b"same-origin", b"none", b"")

Headers = Mapping[bytes, bytes]


class Guard:
    """The guard of a listener.

    origin: the configured origin; "" for the origin in the request's own Host.
    has_tls: whether the listener uses TLS.
    cookie_name: the end of the name of the cookie. A browser sends the cookies of a host to all of its ports, so consoles with
        different passwords need different names.
    """

    def __init__(self, origin: str, has_tls: bool, cookie_name: str) -> None:
        self._origin = origin
        self._scheme = "https" if has_tls else "http"
        scheme, _, host = origin.partition("://")
        self._hosts = {host.encode(), f"{host}:{_PORTS[scheme]}".encode()} if origin else set()
        self.is_secure = origin.startswith("https://") if origin else has_tls
        self.cookie = (SECURE_COOKIE if self.is_secure else PLAIN_COOKIE) + cookie_name

    def check_host(self, headers: Headers) -> None:
        """Raises Refused(403) if the Host is neither an address, localhost nor the host of the configured origin."""
        host = headers.get(b"host", b"").lower()
        if not (host and (is_own_name(host) or host in self._hosts)):
            raise Refused(
                403, "this Host is not the console's: open the console by an IP address or as localhost, or set console.origin"
            )

    def check_site(self, headers: Headers) -> None:
        """Raises Refused(403) if a page of another site made the browser send the request."""
        if headers.get(b"sec-fetch-site", b"") not in _OWN_SITES:
            raise Refused(403, "a page of another site sent this request to the console")

    def check_origin(self, headers: Headers) -> None:
        """Raises Refused(403) if the header Origin is not the origin of the console."""
        own = self._origin or f"{self._scheme}://{headers.get(b'host', b'').decode('latin-1')}"
        if headers.get(b"origin", b"").decode("latin-1").lower() != own.lower():
            raise Refused(403, f"the header Origin must be the console's origin, which is {own[:200]}")

    def check_change(self, headers: Headers) -> None:
        """Raises Refused(403) if a request other than GET does not come from the console's own page."""
        self.check_origin(headers)
        if headers.get(b"push1st-console") != b"1":
            raise Refused(403, "a call that changes something needs the header Push1st-Console: 1")

    def cookie_of(self, header: str | None) -> str:
        """Returns the value of the console's cookie; "" without one. `header`: the header `Cookie`."""
        for pair in (header or "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self.cookie:
                return value
        return ""

    def set_cookie(self, value: str, seconds: int) -> bytes:
        """Returns the header that sets the console's cookie; with `seconds` 0, the header that deletes it."""
        secure = "; Secure" if self.is_secure else ""
        return f"Set-Cookie: {self.cookie}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}\r\n".encode()
