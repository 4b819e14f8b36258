"""Runs `async def` tests, each in a loop of its own; nothing in them waits for time."""

from tests.unit.fakes import pytest_pyfunc_call as pytest_pyfunc_call
