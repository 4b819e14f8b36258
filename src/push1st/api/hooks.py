"""Serves `GET /apps/{app}/hooks`: the state of the hooks of an app, on all workers of the machine."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from push1st.api.call import Call, answer
from push1st.hooks import Status
from push1st.messages import Response

_decode = msgspec.msgpack.Decoder(list[Status]).decode


async def listing(call: Call) -> Response:
    """Lists the endpoints in the order of the configuration. URLs are shown without their secret parts."""
    call.check_reads()
    node, app = call.node, call.app.config.id
    found = node.hooks.status(app)
    if node.siblings is not None:
        found = merged(found, map(_decode, await node.siblings.hooks(app)))
    return answer({"hooks": found})


def states(hooks: Sequence[Status]) -> bytes:
    """Encodes the state of a worker's hooks, for the worker that answers for all workers."""
    return msgspec.msgpack.encode(hooks)


def merged(own: Iterable[Status], others: Iterable[Iterable[Status]]) -> list[Status]:
    """Returns the sums of all workers, each with the last error of all. The list ends with endpoints that this worker does not
    have, because another worker has a different configuration.
    """
    found = dict(_named(own))
    for those in others:
        for name, one in _named(those):
            found[name] = _sum(found[name], one) if name in found else one
    return list(found.values())


def _named(hooks: Iterable[Status]) -> Iterator[tuple[tuple[str, str, int], Status]]:
    """Adds a number to each endpoint, because two endpoints may have the same text without their secret parts."""
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
