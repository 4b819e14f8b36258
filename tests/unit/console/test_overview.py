"""The size of the overview in a large cluster."""

import msgspec

from push1st.console.live import MAX_WAITING
from push1st.console.overview import NodeOverview
from push1st.console.samples import EVERY_SECONDS, FIELDS, MAX_SAMPLES, Samples, added
from push1st.console.wire import MAX_HEARD
from tests.support.server_status import worker

LARGE = 10**12


async def test_first_overview_of_the_largest_cluster_leaves_room_for_other_messages():
    samples = Samples()
    for number in range(MAX_SAMPLES):
        samples.add(1e9 + number * EVERY_SECONDS, [number * LARGE + 0.123] * len(FIELDS))
    series = await added([samples.series()] * MAX_HEARD, 1e9 + MAX_SAMPLES * EVERY_SECONDS)
    assert len(msgspec.json.encode(series)) < 10_000
    figures = msgspec.structs.asdict(worker(0).figures)
    figures["connections"] = dict.fromkeys(("pusher", "pusher-xhr", "websocket", "sse", "mqtt", "mqtt5"), LARGE)
    figures["counters"] = {f"a counter with name {number}": LARGE for number in range(10)}
    node = NodeOverview(
        **figures,
        id="n" * 16,
        machine="m" * 64,
        python="3.14.0",
        behind_bytes=LARGE,
        hook_oldest=0.123456789,
        hook_app="a" * 64,
        hook_lost_app="a" * 64,
    )
    assert len(msgspec.json.encode({"nodes": [node] * MAX_HEARD, "series": series})) < MAX_WAITING * 0.75
