"""Serves `GET /apps/{app}/hooks`: the states of an app's hook endpoints, with counts summed over all workers of the machine."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from push1st.api.call import Call, answer
from push1st.hooks import Status
from push1st.messages import Response

_decode = msgspec.msgpack.Decoder(list[Status]).decode


async def listing(call: Call) -> Response:
    """Lists the hook endpoints of an app in the order of the configuration. The answer shows URLs without secret parts."""
    call.check_reads()
    node, app = call.node, call.app.config.id
    found = node.hooks.status(app)
    if node.siblings is not None:
        found = merged(found, map(_decode, await node.siblings.hooks(app)))
    return answer({"hooks": found})


def states(hooks: Sequence[Status]) -> bytes:
    """Encodes the states of this worker's hook endpoints, for another worker that answers an API request."""
    return msgspec.msgpack.encode(hooks)


def merged(own: Iterable[Status], others: Iterable[Iterable[Status]]) -> list[Status]:
    """Adds up the counts of each hook endpoint in all workers, and selects the newest error. If other workers have another
    configuration than this worker, the list ends with the endpoints that this worker does not have.
    """
    found = dict(_named(own))
    for those in others:
        for name, one in _named(those):
            found[name] = _sum(found[name], one) if name in found else one
    return list(found.values())


def _named(hooks: Iterable[Status]) -> Iterator[tuple[tuple[str, str, int], Status]]:
    """Adds a number to each endpoint: without secret parts, several endpoints may have the same URL."""
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
