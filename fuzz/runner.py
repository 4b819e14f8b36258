"""The seeds, mutations and command line of all fuzzers.

    python -m fuzz.websocket --seconds 60 --seed 1

A fuzzer is a module with `SEEDS` and `run(data, random)`. `run` gives one input to a decoder and raises an exception for any
result that the documentation of the decoder does not allow. The command line prints a failure with its input: write a test with
that input, then fix the defect. The fuzzers need no extra packages. The same seed gives the same inputs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from itertools import count
from random import Random

Run = Callable[[bytes, Random], None]

MAX_BYTES = 4096
ODD = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"{}",
    b"[",
    b"[" * 2000,
    b'{"a":' * 600,
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 30,
    b":",
    b",",
    b" ",
    b"\t",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf0\x9f\x98\x80",
    b"%00",
    b"%ff",
    b"&",
    b"*",
    b"!!",
    b"- ",
)


def random_of(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - repeatable on purpose, nothing is secret here


def mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Returns `data` after one to eight changes."""
    for _ in range(random.randint(1, 8)):
        at = random.randint(0, len(data))
        to = min(len(data), at + random.choice((1, 1, 1, 2, 4, 16, 64)))
        match random.randrange(8):
            case 0:
                data = data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]
            case 1 if at < len(data):
                data = data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
            case 2:
                data = data[:at] + data[to:]
            case 3:
                data = data[:at] + data[at:to] * random.randint(2, 5) + data[to:]
            case 4:
                data = data[:at] + random.choice(ODD) + data[at:]
            case 5:
                other = random.choice(others)
                data = data[:at] + other[random.randint(0, len(other)) :]
            case 6:
                data = data[:at] + random.randbytes(random.randint(1, 12)) + data[to:]
            case _:
                data += random.choice(others)
    return data[:MAX_BYTES]


def cut(data: bytes, random: Random) -> Iterator[bytes]:
    """Returns `data` in chunks of random lengths."""
    if random.random() < 0.2:
        yield data
        return
    most = random.choice((1, 3, 10, 100))
    at = 0
    while at < len(data):
        to = at + random.randint(1, most)
        yield data[at:to]
        at = to


def inputs(seeds: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """Yields the seeds themselves, then an endless sequence of mutations."""
    yield from seeds
    while True:
        yield mutated(random.choice(seeds), seeds, random)


def fuzz(run: Run, seeds: Sequence[bytes], seed: int, most: int | None = None, seconds: float | None = None) -> int:
    """Runs `most` inputs, or as many as `seconds` allow; returns their number. Raises what the decoder must not raise."""
    random = random_of(seed)
    until = None if seconds is None else time.monotonic() + seconds
    for number, data in zip(count(), inputs(seeds, random), strict=False):
        if (most is not None and number >= most) or (until is not None and time.monotonic() >= until):
            return number
        try:
            run(data, random_of(number))
        except BaseException as failure:
            failure.add_note(f"seed {seed}, input {number}: {data!r}")
            raise
    raise AssertionError("inputs do not end")


def among(code: int, codes: Container[int]) -> None:
    """Checks the code of a rejection."""
    assert code in codes, code


def main(run: Run, seeds: Sequence[bytes], about: str | None) -> None:
    """Runs the command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what to begin with (default: the time)")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds:g} s", file=sys.stderr)
    print(f"{fuzz(run, seeds, options.seed, seconds=options.seconds)} inputs, nothing found", file=sys.stderr)
