"""`push1st publish`: publishes an event through the HTTP API, as a backend does."""

import json
import sys

from push1st.channels import subscription_note
from push1st.cli.arguments import Arguments
from push1st.cli.backend import backend
from push1st.cli.client import naming_assumed_app, select
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
    app = target.app
    for name in channels:
        if note := subscription_note(app.id, app.channels, name, app.limits.channel_name):
            print(printable(f"note: {note}"), file=sys.stderr)
    return 0
