"""Reports the hook events of this worker's sessions and channels to the broker.

Callers check `App.hook_kinds` first, so an event that no hook wants costs nothing.
"""

from push1st.brokers import HookEvents
from push1st.clock import Clock
from push1st.core.app import App
from push1st.messages import HookEvent, HookEventKind, Member, Publish

MAX_TTL = 1 << 53
"""an event's maximum time to live in seconds; a longer time is reduced to it, so that the time of expiry fits into 64 bits"""


class Reports:
    """Reports hook events, except events on users' channels, whose names begin with `#`."""

    __slots__ = ("_clock", "_hook_events")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hook_events: HookEvents

    def open(self, hook_events: HookEvents) -> None:
        self._hook_events = hook_events

    def report(self, app: App, kind: HookEventKind, channel: str, socket_id: str = "", member: Member | None = None) -> None:
        """Reports an event of a channel. `kind`: one of the kinds in `app.hook_kinds`."""
        if not channel.startswith("#"):
            user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
            self._hook_events.report(HookEvent(kind, app.config.id, channel, self._clock.wall(), socket_id, user_id, info))

    def client_event(
        self, app: App, event: Publish, data: bytes, stamp: tuple[int, int], socket_id: str, member: Member | None
    ) -> None:
        """Reports a client event. Called only if `client-event` is in `app.hook_kinds`.

        `data`: the published data, which the app's backend may have replaced. `stamp`: the id and the time of the message.
        """
        if event.channel.startswith("#"):
            return
        id, now = stamp
        user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
        expires = now // 1_000_000_000 + int(min(event.ttl, MAX_TTL)) if event.ttl else 0
        self._hook_events.report(
            HookEvent(
                "client-event",
                app.config.id,
                event.channel,
                now,
                socket_id,
                user_id,
                info,
                event.event,
                data,
                id=id,
                delivery=event.delivery,
                expires=expires,
                given=event.given,
            )
        )
