"""What nodes ask each other over a topic, and the answers, of which there are as many as nodes that were reached."""

import asyncio
from collections.abc import Awaitable


class PendingReplies:
    """A question and its answers, until all are there that are expected."""

    __slots__ = ("_expected", "answers", "done")

    def __init__(self, done: "asyncio.Future[None]") -> None:
        self.done = done
        self.answers: list[bytes] = []
        self._expected = -1

    def expect(self, count: int) -> None:
        self._expected = count
        self._look()

    def add(self, answer: bytes) -> None:
        self.answers.append(answer)
        self._look()

    def _look(self) -> None:
        if 0 <= self._expected <= len(self.answers):
            self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Requests:
    """Those of this node that have not been answered by all."""

    def __init__(self) -> None:
        self._asked: dict[int, PendingReplies] = {}
        self._last = 0

    def next(self) -> int:
        """The number of the next question."""
        self._last += 1
        return self._last

    async def answers(self, number: int, reached: Awaitable[int], seconds: float) -> list[bytes]:
        """The answers that come in time. reached: asks, and says how many nodes that reached; time counts from then on."""
        loop = asyncio.get_running_loop()
        asked = self._asked[number] = PendingReplies(loop.create_future())
        timer = None
        try:
            asked.expect(await reached)
            timer = loop.call_later(seconds, asked.end)
            await asked.done
        finally:
            if timer is not None:
                timer.cancel()
            del self._asked[number]
        return asked.answers

    def answered(self, number: int, answer: bytes) -> None:
        asked = self._asked.get(number)
        if asked is not None:
            asked.add(answer)
