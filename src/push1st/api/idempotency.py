"""The idempotency key of a published event. With such a key, a backend may repeat a publish, and no subscriber gets it twice.

The broker stores the result of a publish under its app, channel and key (`Broker.publish`). This module reads the key of a
request, and creates the header that marks a repeated request.
"""

import re
from collections.abc import Iterable

from push1st.errors import Refused
from push1st.messages import Published
from push1st.metrics import Metrics

MAX_KEY = 128
_KEY = re.compile(rf"[!-~]{{1,{MAX_KEY}}}\Z")
_REPLAYED = b"Idempotent-Replayed: true\r\n"


def key_of(field: str | None, header: bytes | None) -> str:
    """Returns the idempotency key of an event; "" for an event without a key. Raises Refused(400).

    field: the value of `idempotency_key` in the event; None if the event does not have this field.
    header: the value of the request's header `Idempotency-Key`; None if the request does not have this header.
    """
    if header is None:
        if field is None:
            return ""
        name, key = "idempotency_key", field
    else:
        name, key = "Idempotency-Key", header.decode("latin-1").strip(" \t")  # RFC 9110 §5.5
        if field is not None and field != key:
            raise Refused(400, "idempotency_key and the header Idempotency-Key differ")
    if not _KEY.match(key):
        shown = f"is {key!r}" if len(key) <= MAX_KEY else f"has {len(key)} characters"
        raise Refused(400, f"{name} {shown}: a key has 1 to {MAX_KEY} visible ASCII characters")
    return key


def count_repeats(results: Iterable[Published], metrics: Metrics) -> bytes:
    """Counts the repeats among the results of a request. Returns a header for the answer if all results are repeats, else b""."""
    repeats = [result.repeats != 0 for result in results]
    metrics.idempotent_repeats += sum(repeats)
    return _REPLAYED if all(repeats) else b""
