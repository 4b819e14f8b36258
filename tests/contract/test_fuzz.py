"""Each decoder with a few hundred mutated inputs, always the same ones; `python -m fuzz.NAME` runs longer."""

from types import ModuleType

import pytest

from fuzz import config, http, mqtt, positions, proxy, pusher, raw, requests, websocket
from fuzz.runner import fuzz

FUZZERS = (websocket, pusher, raw, positions, requests, http, mqtt, proxy, config)


@pytest.mark.parametrize("module", FUZZERS, ids=[module.__name__ for module in FUZZERS])
def test_a_decoder_raises_only_what_it_documents(module: ModuleType):
    most = 150 if module is config else 400
    assert fuzz(module.run, module.SEEDS, seed=20_240_101, most=most) == most


@pytest.mark.parametrize("module", FUZZERS, ids=[module.__name__ for module in FUZZERS])
def test_the_same_seed_gives_the_same_inputs(module: ModuleType):
    def inputs() -> list[bytes]:
        seen: list[bytes] = []
        fuzz(lambda data, _: seen.append(data), module.SEEDS, seed=5, most=50)
        return seen

    assert inputs() == inputs()


def test_failure_names_the_input_that_causes_it():
    def fail(data: bytes, random: object) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as failure:
        fuzz(fail, [b"abc"], seed=7, most=1)
    assert "seed 7, input 0: b'abc'" in "".join(failure.value.__notes__)
