"""The durations that the Redis broker measures, on a real server."""

from push1st.messages import Message
from tests.contract.redis import NOW, redis_broker, valkey

APP = "app-a"
LAG_SECONDS = 0.02


async def test_each_step_and_a_sample_of_the_messages_are_measured() -> None:
    broker = redis_broker(valkey().url)
    received: list[Message] = []

    def receive(message: Message) -> int:
        received.append(message)
        return 1

    await broker.open(receive, lambda _: None, lambda *_: b"answer", lambda *_: None)
    metrics = broker._shards.all[0]._metrics
    await broker.subscribe(APP, "c")
    await broker.join(APP, "c", "1.1", None, 0)
    for number in range(32):
        message = Message(APP, "c", "e", b"1", number, NOW - int(LAG_SECONDS * 1e9))
        await broker.publish(message)
        await broker.settled()
    assert await broker.request(APP, "c", b"question") == [b"answer"]
    await broker.leave(APP, "c", "1.1", None)
    await broker.settled()
    counts = {step: sum(one.counts) for step, one in metrics.broker_seconds.items()}
    assert counts == {"publish": 32, "join": 1, "leave": 1, "ask": 1}
    assert all(0 < one.sum < 60 for one in metrics.broker_seconds.values())
    assert len(received) == 32
    assert (sum(metrics.broker_lag.counts), round(metrics.broker_lag.sum, 6)) == (2, 2 * LAG_SECONDS)
    await broker.close()
