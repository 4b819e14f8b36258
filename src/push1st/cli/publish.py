"""`push1st publish`: publishes an event through the HTTP API, as a backend does."""

import http.client
import json
import os
import sys
import time
from urllib.parse import quote, urlencode

from push1st import auth
from push1st.channels import covers, kind_of, pusher_name_error
from push1st.cli.arguments import Arguments
from push1st.cli.client import cause, naming_assumed_app, select, server_url, split_url
from push1st.config.model import AppConfig
from push1st.errors import ClientError, ConfigError, Rejected
from push1st.printable import printable

TIMEOUT_SECONDS = 10


def run(options: Arguments) -> int:
    """Publishes an event and prints the server's answer. Raises ConfigError and ClientError."""
    target = select(options)
    config, app = target.config, target.app
    # The answer to an unsigned request contains the number of subscribers. A server accepts an unsigned request only from a
    # caller that it trusts, and the demo trusts this machine.
    signed = options.secret or os.environ.get("PUSH1ST_APP_SECRET") or not config.demo
    if signed and app.secret and not app.key:
        raise ConfigError(f"app {app.id} has no key here: give it with -c FILE or --key")
    try:
        data = json.loads(options.data)
    except ValueError:
        data = options.data
    channels = options.channel.split(",")
    api = server_url(config, "http") if options.api is None else options.api
    with naming_assumed_app(target):
        answer = publish(api, config.api.path, app.id, app.key, app.secret if signed else "", channels, options.event, data)
    print(printable(answer))
    for name in channels:
        if note := _unreachable(app, name):
            print(printable(f"note: {note}"), file=sys.stderr)
    return 0


def publish(api: str, base: str, app: str, key: str, secret: str, channels: list[str], event: str, data: object) -> str:
    """Publishes an event and returns the server's answer. Raises ClientError.

    api: the URL of the server.
    base: the path of the API, such as /apps/.
    app: the app's id.
    secret: the secret that signs the request; with "" the request is unsigned.
    data: the data of the event, any value that JSON can represent.
    """
    url = split_url(api, ("http", "https"), "http://127.0.0.1:6002")
    path = f"{url.path.rstrip('/')}{base}{quote(app, safe='')}/events"
    body = json.dumps({"name": event, "channels": channels, "data": data}).encode()
    target = path
    if secret:
        target = f"{path}?{urlencode(auth.sign_request(key, secret, 'POST', path, {}, body, int(time.time())))}"
    factory = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = factory(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise ClientError(f"no answer from {api}: {cause(exc)}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise Rejected(f"{api} answered {response.status}: {answer}")
    return answer


def _unreachable(app: AppConfig, name: str) -> str:
    """Returns the reason why no client, or no Pusher client, can subscribe to a channel; "" if all clients can subscribe."""
    kind = kind_of(name)
    if not covers(app.channels, kind):
        return f"nobody can subscribe to {name}: app {app.id} has no {kind.type} channels, only {', '.join(sorted(app.channels))}"
    error = pusher_name_error(name)
    return f"only raw WebSocket clients can subscribe to {name}: {error}" if error else ""
