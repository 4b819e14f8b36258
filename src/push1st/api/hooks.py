"""How the hooks of an app are doing: `GET /apps/{app}/hooks`, on all workers of the machine together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from push1st.api.call import Call, answer
from push1st.hooks import Status
from push1st.messages import Response

_decode = msgspec.msgpack.Decoder(list[Status]).decode


async def listing(call: Call) -> Response:
    """Each endpoint in the configuration's order; of URLs only what is not secret."""
    call.check_reads()
    node, app = call.node, call.app.config.id
    found = node.hooks.status(app)
    if node.siblings is not None:
        found = merged(found, map(_decode, await node.siblings.hooks(app)))
    return answer({"hooks": found})


def states(hooks: Sequence[Status]) -> bytes:
    """How a worker's hooks do, for the worker that is asked for those of all."""
    return msgspec.msgpack.encode(hooks)


def merged(own: Iterable[Status], others: Iterable[Iterable[Status]]) -> list[Status]:
    """Sums, with the last of all errors. Endpoints that only another worker has come behind: one with another configuration."""
    found = dict(_named(own))
    for those in others:
        for name, one in _named(those):
            found[name] = _sum(found[name], one) if name in found else one
    return list(found.values())


def _named(hooks: Iterable[Status]) -> Iterator[tuple[tuple[str, str, int], Status]]:
    """Two endpoints may differ only in what is not shown, so they are told apart by their order."""
    seen: Counter[tuple[str, str]] = Counter()
    for one in hooks:
        seen[one.endpoint, one.format] += 1
        yield (one.endpoint, one.format, seen[one.endpoint, one.format]), one


def _sum(one: Status, two: Status) -> Status:
    last = max(one, two, key=lambda each: each.last_error_at or 0)
    return Status(
        endpoint=one.endpoint,
        format=one.format,
        queued=one.queued + two.queued,
        sent=one.sent + two.sent,
        failed=one.failed + two.failed,
        retrying=one.retrying + two.retrying,
        last_error=last.last_error,
        last_error_at=last.last_error_at,
    )
