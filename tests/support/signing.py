"""Pusher's signatures, implemented a second time from its documentation.

A test that used the server's own signatures would only show that the server agrees with itself.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from urllib.parse import urlencode


def hmac_hex(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def signed_query(method: str, path: str, body: bytes, query: Mapping[str, str], key: str, secret: str, at: float) -> str:
    """Returns the query string of a signed API request (Pusher protocol, section 9). `at`: Unix time in seconds."""
    fields = {**query, "auth_key": key, "auth_timestamp": str(int(at)), "auth_version": "1.0"}
    if body:
        fields["body_md5"] = hashlib.md5(body, usedforsecurity=False).hexdigest()
    text = "&".join(f"{name.lower()}={fields[name]}" for name in sorted(fields))
    fields["auth_signature"] = hmac_hex(secret, f"{method}\n{path}\n{text}")
    return urlencode(fields)


def channel_auth(socket_id: str, channel: str, data: str = "", key: str = "app-key", secret: str = "secret") -> str:
    """Returns the `auth` of a subscription to a private or presence channel."""
    return f"{key}:{hmac_hex(secret, ':'.join(filter(None, (socket_id, channel, data))))}"


def access_token(claims: Mapping[str, object], secret: str = "secret") -> str:
    """Returns an access token as a backend makes it: a JSON Web Token (RFC 7519)."""
    parts = [_urlsafe(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signature = hmac.digest(secret.encode(), ".".join(parts).encode(), "sha256")
    return ".".join((*parts, _urlsafe(signature)))


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
