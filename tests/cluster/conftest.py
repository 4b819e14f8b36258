"""Runs `async def` tests, each in a loop of its own; here they wait for real servers, each wait with a deadline."""

from tests.unit.fakes import pytest_pyfunc_call as pytest_pyfunc_call
