"""Finds entries of an app's `origins` that match no request of a browser, because browsers send the origin in another form.

The header `Origin` contains scheme, host, and a port other than the scheme's default, in lower case and ASCII (RFC 6454 §6.2).
An entry may also be a host without a scheme, with or without a port (`admission.origin_allowed`).
"""

import ipaddress
import re
from unicodedata import normalize

_REST = re.compile(r"(?:[^/?#@]*@)?(\[[^\]]*\]|[^:/?#]*)(?::([0-9]*))?(?:[/?#].*)?\Z")
_OWN_PORTS = {"http": ("80",), "https": ("443",), "": ("80", "443")}
_PAGES = {"ws": "http", "wss": "https"}


def note_on(entry: str) -> str:
    """Returns the reason why no browser matches an entry of `origins`; "" if a browser can match the entry."""
    sent = as_sent(entry)
    if not sent:
        return f'found "{entry}", but browsers send one whole origin, such as https://shop.example, and the only pattern is *'
    return "" if sent == entry.lower().rstrip("/") else f'found "{entry}", but browsers send "{sent}"'


def as_sent(entry: str) -> str:
    """Returns an entry in the form that browsers send; "" if the entry is not an origin."""
    entry = normalize("NFC", entry.lower())
    if entry.rstrip("/") in ("*", "null", "file:"):
        return entry.rstrip("/")
    scheme, separator, rest = entry.rpartition("://")
    scheme = _PAGES.get(scheme, scheme)
    found = _REST.match(rest)
    host = _host(found[1]) if found else ""
    if found is None or not host:
        return ""
    port = "" if found[2] in _OWN_PORTS.get(scheme, ()) else found[2]
    return scheme + separator + host + (f":{port}" if port else "")


def _host(host: str) -> str:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            return ""
    if not re.fullmatch(r"[\w.-]+", host):
        return ""
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in host.split("."))
