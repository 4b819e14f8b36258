"""Apps of the shared server, for behaviours that one app cannot show; all have the secret `secret`."""

from typing import Any

from tests.support.process import APP, merged

APPS: dict[str, Any] = {
    # The Python library takes no app id but digits.
    "1234": merged(APP, {"key": "sdk-key"}),
    "app-quiet": merged(APP, {"key": "quiet-key", "options": {"client-messages": False}}),
    "app-off": merged(APP, {"key": "off-key", "enable": False}),
    "app-quota": merged(APP, {"key": "quota-key", "limits": {"connections": 1}}),
    "app-origins": merged(APP, {"key": "origins-key", "origins": ["https://good.example"]}),
    "app-private": merged(APP, {"key": "private-key", "channels": ["private"]}),
    "app-small": merged(
        APP,
        {
            "key": "small-key",
            "limits": {
                "subscriptions": 3,
                "members": 2,
                "payload": 100,
                "channel-name": 20,
                "event-name": 10,
                "channels-per-event": 2,
                "client-events": 2,
            },
        },
    ),
    "app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}}),
}
