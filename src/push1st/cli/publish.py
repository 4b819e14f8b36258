"""`push1st publish`: publishes an event through the HTTP API, as a backend does."""

import json
import sys

from push1st.channels import covers, kind_of, pusher_name_error
from push1st.cli.arguments import Arguments
from push1st.cli.backend import backend
from push1st.cli.client import naming_assumed_app, select
from push1st.config.model import AppConfig
from push1st.printable import printable


def run(options: Arguments) -> int:
    """Publishes an event and prints the server's answer. Raises ConfigError and ClientError."""
    target = select(options)
    sender = backend(target, options)
    try:
        data = json.loads(options.data)
    except ValueError:
        data = options.data
    channels = options.channel.split(",")
    event = {"name": options.event, "channels": channels, "data": data}
    if options.idempotency_key is not None:
        event["idempotency_key"] = options.idempotency_key
    with naming_assumed_app(target):
        answer = sender.request("POST", "events", {}, json.dumps(event).encode())
    print(printable(answer))
    for name in channels:
        if note := _unreachable(target.app, name):
            print(printable(f"note: {note}"), file=sys.stderr)
    return 0


def _unreachable(app: AppConfig, name: str) -> str:
    """Returns the reason why no client, or no Pusher client, can subscribe to a channel; "" if all clients can subscribe."""
    kind = kind_of(name)
    if not covers(app.channels, kind):
        return f"nobody can subscribe to {name}: app {app.id} has no {kind.type} channels, only {', '.join(sorted(app.channels))}"
    error = pusher_name_error(name)
    return f"only raw WebSocket clients can subscribe to {name}: {error}" if error else ""
