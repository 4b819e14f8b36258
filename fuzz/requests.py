"""Fuzzes the decoder of HTTP requests: any bytes, in any chunks, are the same events, and remembered heads change nothing."""

from random import Random

from fuzz.http import SEEDS
from fuzz.runner import among, cut, main
from push1st.protocols.http import Continue, HttpEvent, HttpRequest, Reject, RequestDecoder, RequestRules, Upgrade

LEAST_BODY = 100
MAX_BODY = 200
STATUSES = {400, 413, 415, 417, 431, 501, 505}


def rules() -> RequestRules:
    return RequestRules(
        LEAST_BODY,
        lambda _: MAX_BODY,
        frozenset((b"forwarded", b"via")),
        lambda host: host == b"localhost",
        "/app/",
        lambda: 1,
    )


def run(data: bytes, random: Random) -> None:
    events = decoded([data])
    assert decoded(list(cut(data, random))) == events, "chunks change what is read"
    common = rules()
    decoder = RequestDecoder(common)
    before = decoder.feed(data)
    decoder.remember(data)
    known = RequestDecoder(common).known(data, "why")
    assert (known is None) is not bool(common.heads)
    if known is not None:
        (request,) = (event for event in before if isinstance(event, HttpRequest))
        assert request.keep
        assert not request.path.startswith("/app/")
        assert not request.headers.keys() - {b"host", b"connection", b"content-length"}
        read = (request.method, request.path, request.query, request.body)
        assert (known.method, known.path, known.query, known.body) == read, "a remembered head changes what is read"


def decoded(chunks: list[bytes]) -> list[object]:
    """The events of these chunks. Of a rejection it has the status only; of an upgrade all but the input after it."""
    decoder = RequestDecoder(rules())
    events: list[HttpEvent] = []
    for chunk in chunks:
        events += decoder.feed(chunk)
        assert decoder.body_left >= 0
    for event in events[:-1]:
        assert isinstance(event, HttpRequest | Continue), "an event after the end"
    match events[-1:]:
        case [Reject(status, text)]:
            assert decoder.is_done
            assert text
            among(status, STATUSES)
            return [*events[:-1], status]
        case [Upgrade(method, path, query, headers, is_valid)]:
            assert decoder.is_done
            return [*events[:-1], (method, path, query, headers, is_valid)]
        case [HttpRequest(keep=False)]:
            assert decoder.is_done
    for event in events:
        if isinstance(event, HttpRequest):
            assert len(event.body) <= MAX_BODY
            assert event.path.startswith("/")
    return list(events)


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
