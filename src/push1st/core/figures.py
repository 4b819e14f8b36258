"""The figures of apps on this worker, for `push1st status` and the console. The worker counts them only when they are
requested."""

from collections.abc import Iterable

from push1st.core.app import App
from push1st.status import AppFigures

MAX_CHANNELS = 20_000
"""the maximum number of channels whose subscriptions are counted; this takes two milliseconds"""


def app_figures(apps: Iterable[App]) -> dict[str, AppFigures]:
    """Returns the figures of apps, by the app's id. The channels of signed-in users count only if there are too many channels."""
    found = {}
    examined = 0
    for app in apps:
        tenant = app.tenant
        channels, subscriptions = len(tenant.channels), None
        examined += channels
        if examined <= MAX_CHANNELS:
            counts = [len(lanes) for name, lanes in tenant.channels.items() if not name.startswith("#")]
            channels, subscriptions = len(counts), sum(counts)
        count = app.counts
        found[app.config.id] = AppFigures(
            connections=len(tenant.sessions),
            channels=channels,
            subscriptions=subscriptions,
            events_in=sum(count.events_in.values()),
            messages_out=count.messages_out,
            refusals=count.refusals,
        )
    return found
