"""Sends requests to the HTTP API, as the backend of an app does; `publish` and `history` share this module."""

import http.client
import os
import time
from urllib.parse import quote, urlencode

import msgspec

from push1st import auth
from push1st.cli.arguments import Arguments
from push1st.cli.client import ServerApp, cause, server_url, split_url
from push1st.errors import ClientError, ConfigError, Rejected

TIMEOUT_SECONDS = 10


class Backend(msgspec.Struct, frozen=True):
    """A backend of one app.

    api: the URL of the server.
    base: the path of the API, such as /apps/.
    app: the app's id.
    secret: the secret that signs the requests; with "" the requests are unsigned.
    """

    api: str
    base: str
    app: str
    key: str
    secret: str

    def request(self, method: str, path: str, params: dict[str, str], body: bytes = b"") -> str:
        """Sends a request; returns the server's answer. Raises ClientError.

        path: the path after the app's id.
        """
        url = split_url(self.api, ("http", "https"), "http://127.0.0.1:6002")
        target = f"{url.path.rstrip('/')}{self.base}{quote(self.app, safe='')}/{path}"
        if self.secret:
            params = auth.sign_request(self.key, self.secret, method, target, params, body, int(time.time()))
        if params:
            target = f"{target}?{urlencode(params)}"
        factory = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = factory(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, target, body or None, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            answer = response.read().decode("utf-8", "replace").strip()
        except (OSError, http.client.HTTPException, UnicodeError) as exc:
            raise ClientError(f"no answer from {self.api}: {cause(exc)}") from exc
        finally:
            connection.close()
        if response.status != 200:
            raise Rejected(f"{self.api} answered {response.status}: {answer}", response.status)
        return answer


def backend(target: ServerApp, options: Arguments) -> Backend:
    """Returns the backend for the options of a command. Raises ConfigError.

    The backend of the demo signs no requests without an option: the demo trusts this machine, and the answer to an unsigned
    publish contains the number of subscribers.
    """
    config, app = target.config, target.app
    signed = options.secret or os.environ.get("PUSH1ST_APP_SECRET") or not config.demo
    if signed and app.secret and not app.key:
        raise ConfigError(f"app {app.id} has no key here: give it with -c FILE or --key")
    api = server_url(config, "http") if options.api is None else options.api
    return Backend(api, config.api.path, app.id, app.key, app.secret if signed else "")
