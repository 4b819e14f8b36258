"""The delay before a child process is restarted, and its interpreter options."""

import sys

import pytest

from push1st.process.children import MAX_WAIT_SECONDS, MIN_WAIT_SECONDS, STEADY_SECONDS, Backoff, interpreter_options


def test_child_that_ends_soon_is_restarted_at_once_then_with_growing_delays():
    backoff = Backoff()
    waits = [backoff.after(1) for _ in range(12)]
    assert waits[:4] == [0, MIN_WAIT_SECONDS, 2 * MIN_WAIT_SECONDS, 4 * MIN_WAIT_SECONDS]
    assert waits[-2:] == [MAX_WAIT_SECONDS, MAX_WAIT_SECONDS]


def test_child_that_ran_long_is_restarted_at_once():
    backoff = Backoff()
    for _ in range(5):
        backoff.after(0)
    assert backoff.after(STEADY_SECONDS) == 0
    assert backoff.after(1) == 0
    assert backoff.after(1) == MIN_WAIT_SECONDS


@pytest.mark.parametrize(
    ("line", "arguments", "options"),
    [
        (["python", "-m", "push1st", "serve"], ["/x/__main__.py", "serve"], []),
        (
            ["python", "-W", "error", "-X", "dev", "-m", "push1st", "serve"],
            ["/x/__main__.py", "serve"],
            ["-W", "error", "-X", "dev"],
        ),
        (["python", "/bin/push1st", "serve", "-c", "x"], ["/bin/push1st", "serve", "-c", "x"], []),
        (["python", "-I", "/bin/push1st", "serve"], ["/bin/push1st", "serve"], ["-I"]),
    ],
)
def test_workers_get_the_options_of_our_own_interpreter(monkeypatch, line, arguments, options):
    monkeypatch.setattr(sys, "orig_argv", line)
    monkeypatch.setattr(sys, "argv", arguments)
    assert interpreter_options() == options
