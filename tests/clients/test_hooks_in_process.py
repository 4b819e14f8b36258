"""Hooks in Python and in Lua: the arguments of their calls, and their isolation from the server."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.process import running as serving
from tests.support.pusher_socket import pusher_socket

KEEPING = """
import json, os, sys, time
from push1st.hooks import events

HERE = os.path.dirname(__file__)

def keep(what):
    with open(os.path.join(HERE, "kept.jsonl"), "a") as file:
        file.write(json.dumps(what) + "\\n")
"""


class Kept:
    """The folder of modules and scripts, and the lines that they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def lines(self) -> list[Any]:
        file = self.folder / "kept.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def until(self, count: int) -> list[Any]:
        wait_until(lambda: len(self.lines) >= count, f"{count} lines kept, there are {self.lines}")
        return self.lines


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


@contextmanager
def running(kept: Kept, module: str = "", quiet: bool = True, **app: Any) -> Iterator[ServerProcess]:
    """Runs a server that finds the module `shop`."""
    (kept.folder / "shop.py").write_text(KEEPING + module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(kept.folder))
        with serving({"server": {"drain": 0}}, {"app-test": merged(APP, app)}) as server:
            yield server
            if not quiet:  # the log must have the trace of the exception that the hook raises
                server.assert_quiet = lambda: None  # type: ignore[method-assign]
                if status(server)["queued"]:  # the server would wait for a failing event
                    server.stop_at_once()


def status(server: ServerProcess) -> dict[str, Any]:
    (one,) = server.get("/apps/app-test/hooks").json["hooks"]
    return one  # type: ignore[no-any-return]  # JSON


def webhook(**more: Any) -> dict[str, Any]:
    return {"webhooks": [{"url": "py://shop:hook", **more}]}


def test_a_function_is_called_with_typed_events(kept: Kept) -> None:
    module = """
def hook(event: events.Event):
    assert isinstance(event, events.Event)
    print("a line of the hook")
    keep([type(event).__name__, event.app, event.channel, getattr(event, "user_id", None), getattr(event, "data", None)])
"""
    with running(kept, module, **webhook()) as server:
        with pusher_socket(server) as one:
            one.subscribe("presence-room", {"user_id": "7"})
            one.send("client-hi", {"a": 1}, "presence-room")
            kept.until(3)
        lines = kept.until(3)
        assert "a line of the hook" in server.output
    lines = kept.until(5)
    assert lines == [
        ["ChannelOccupied", "app-test", "presence-room", None, None],
        ["MemberAdded", "app-test", "presence-room", "7", None],
        ["ClientEvent", "app-test", "presence-room", "7", '{"a": 1}'],
        ["MemberRemoved", "app-test", "presence-room", "7", None],
        ["ChannelVacated", "app-test", "presence-room", None, None],
    ]


def test_a_function_may_be_async(kept: Kept) -> None:
    module = """
import asyncio
async def hook(event):
    await asyncio.sleep(0.01)
    keep(event.channel)
"""
    with running(kept, module, **webhook()) as server, pusher_socket(server) as one:
        one.subscribe("room")
        assert kept.until(1) == ["room"]


def test_a_hook_of_push1st_may_be_a_function(kept: Kept) -> None:
    module = "\ndef hook(event: events.Triggered):\n    keep([event.event, event.channel, event.data])\n"
    hook = {"trigger": ["join"], "endpoint": "py://shop:hook"}
    with running(kept, module, hook=hook) as server, pusher_socket(server) as one:
        one.subscribe("room")
        assert kept.until(1) == [["join", "room", "null"]]


def test_the_function_runs_in_another_process(kept: Kept) -> None:
    with running(kept, "\ndef hook(event):\n    keep(os.getpid())\n", **webhook()) as server, pusher_socket(server) as one:
        one.subscribe("room")
        (pid,) = kept.until(1)
        assert server.process is not None
        assert pid != server.process.pid
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the process is gone with the server")


def test_exception_of_a_function_is_logged_counted_and_retried(kept: Kept) -> None:
    module = """
def hook(event):
    first = not os.path.exists(HERE + "/kept.jsonl")
    keep(event.channel)
    if first:
        raise ValueError("the database is away")
"""
    with running(kept, module, quiet=False, **webhook()) as server, pusher_socket(server) as one:
        one.subscribe("room")
        assert kept.until(2) == ["room", "room"]
        wait_until(lambda: status(server)["sent"] == 1, "sent")
        assert status(server)["last_error"] == "ValueError: the database is away"
        assert "ValueError: the database is away" in server.output
        assert 'push1st_hook_attempts_total{result="raised"} 1.0' in server.get("/metrics").body.decode()


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        ("while True: pass", "timed-out", "did not return within 5 s"),
        ("time.sleep(1000)", "timed-out", "did not return within 5 s"),
        ("os._exit(3)", "crashed", "the process ended with 3"),
        ("os.kill(os.getpid(), 9)", "crashed", "the process ended with -9"),
        ("sys.exit(4)", "crashed", "the process ended with 4"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "the process ended with -11"),
    ],
)
def test_an_endless_loop_or_a_crash_is_contained(kept: Kept, bad: str, kind: str, says: str) -> None:
    module = f"""
def hook(event):
    first = not os.path.exists(HERE + "/kept.jsonl")
    keep(event.channel)
    if first:
        {bad}
"""
    with running(kept, module, quiet=False, **webhook(timeout=5)) as server, pusher_socket(server) as one:
        one.subscribe("room")
        kept.until(1)
        one.round_trip()
        if kind == "timed-out":
            assert not status(server)["last_error"], "the server serves during the call"
        assert kept.until(2) == ["room", "room"]
        wait_until(lambda: status(server)["sent"] == 1, "sent")
        assert status(server)["last_error"] == says
        assert f'push1st_hook_attempts_total{{result="{kind}"}} 1.0' in server.get("/metrics").body.decode()


def test_missing_module_is_reported(kept: Kept) -> None:
    with running(kept, quiet=False, webhooks=[{"url": "py://no_such.module:hook"}]) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: status(server)["last_error"], "an error")
        assert "No module named 'no_such'" in status(server)["last_error"]
        assert "cannot be started" in server.output
        one.round_trip()


def test_a_process_at_work_ends_though_its_server_was_killed(kept: Kept) -> None:
    module = "\ndef hook(event):\n    keep(os.getpid())\n    while True: pass\n"
    (kept.folder / "shop.py").write_text(KEEPING + module)
    server = ServerProcess(apps={"app-test": merged(APP, webhook(timeout=1))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(kept.folder))
        server.start()
    assert server.process is not None
    try:
        with pusher_socket(server) as one:
            one.subscribe("room")
            (pid,) = kept.until(1)
    finally:
        server.process.kill()
        server.process.wait()
        shutil.rmtree(server.folder)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z", "the process has ended", 5)


# Lua


def lua(server_app: dict[str, Any], script: str, kept: Kept) -> dict[str, Any]:
    (kept.folder / "hook.lua").write_text(script)
    return {
        "hook": {"trigger": ["register", "unregister", "join", "leave", "push"], "endpoint": f"lua://{kept.folder}/hook.lua"},
        **server_app,
    }


def test_a_script_is_called_as_push1st_calls_it(kept: Kept) -> None:
    script = """
function OnTrigger(trigger, app, channel, session, json)
    print("lua:", trigger, app, channel, #session > 0, json)
end
"""
    with running(kept, **lua({}, script, kept)) as server, pusher_socket(server) as one:
        one.subscribe("presence-room", {"user_id": "7", "user_info": {"name": "Ä"}})
        wait_until(lambda: "lua:\tjoin" in server.output, "the script was called")
        assert "lua:\tregister\tapp-test\tpresence-room\tfalse\tnull" in server.output
        assert 'lua:\tjoin\tapp-test\tpresence-room\ttrue\t{"user-id":"7","user-info":{"name": "\\u00c4"}}' in server.output


def test_script_keeps_its_state_between_calls(kept: Kept) -> None:
    script = "count = 0\nfunction OnTrigger(t) count = count + 1 print('called ' .. count) end"
    with running(kept, **lua({}, script, kept)) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: "called 2" in server.output, "register and join")


@pytest.mark.parametrize(
    "bad",
    [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "coroutine.wrap(function() while true do end end)()",
        "string.rep('a', 30):rep(1000):find(('.-'):rep(20) .. 'b')",
    ],
)
def test_an_endless_loop_in_a_script_is_ended(kept: Kept, bad: str) -> None:
    script = f"function OnTrigger(trigger) if trigger == 'join' then {bad} end print('done', trigger) end"
    app: dict[str, Any] = {
        "webhooks": [{"url": f"lua://{kept.folder}/hook.lua", "format": "push1st", "events": ["register", "join"], "timeout": 1}]
    }
    (kept.folder / "hook.lua").write_text(script)
    with running(kept, quiet=False, **app) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: status(server)["last_error"], "an error")
        assert status(server)["last_error"] == "did not return within 1 s"
        one.round_trip()


def test_an_error_in_a_script_is_logged_and_counted(kept: Kept) -> None:
    script = "function OnTrigger(trigger) error('no such thing') end"
    with running(kept, quiet=False, **lua({}, script, kept)) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: status(server)["last_error"], "an error")
        assert "no such thing" in status(server)["last_error"]
        assert "no such thing" in server.output


def test_script_without_the_function_is_reported(kept: Kept) -> None:
    with running(kept, quiet=False, **lua({}, "x = 1", kept)) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: status(server)["last_error"], "an error")
        assert "no function OnTrigger" in status(server)["last_error"]
