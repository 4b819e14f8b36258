"""Endpoints that are Lua scripts: `lua://file.lua`. A child process calls the script's `OnTrigger` (Push1st API, section 8).

Each script runs in a sandbox in its own process. The sandbox removes all functions that access files, other programs, the
debugger, Python or byte code, and it limits the memory. The server kills a child process that exceeds the time limit.
This module needs the extra `push1st[lua]`. The child process runs this module as its program.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from push1st.hooks import Target
from push1st.hooks.child import REQUEST, Called, serve
from push1st.hooks.events import Triggered
from push1st.hooks.processes import HookProcesses
from push1st.printable import printable

MAX_MEMORY = 64 << 20

SANDBOX = """
local write, tostring, select, concat = ..., tostring, select, table.concat
local globals, keep = _G, {}
for name in ([[assert error ipairs next pairs pcall rawequal rawget rawlen rawset select setmetatable tonumber
               tostring type xpcall _VERSION math string table utf8 coroutine]]):gmatch("%S+") do
    keep[name] = globals[name]
end
keep.print = function(...)
    local words = {}
    for at = 1, select("#", ...) do words[at] = tostring((select(at, ...))) end
    write(concat(words, "\\t"))
end
keep.os = { time = os.time, date = os.date, clock = os.clock, difftime = os.difftime }
string.dump = nil
getmetatable("").__metatable = false
local pairs = pairs
for name in pairs(globals) do globals[name] = nil end
for name, value in pairs(keep) do globals[name] = value end
globals._G = globals
"""


class Lua(HookProcesses):
    """A `HookTransport` that sends deliveries to a Lua script."""

    def __init__(self, target: Target) -> None:
        super().__init__("push1st.hooks.lua", target)


def _write(line: str) -> None:
    """Prints a line of the script's output. Escapes control characters except tabs, because clients may have sent the text."""
    print("\t".join(map(printable, line.split("\t"))), flush=True)


def load(place: str, folder: str) -> Called:
    """Returns a function that calls the script's `OnTrigger` with the body of a frame."""
    try:
        import lupa  # in the extra `push1st[lua]`
    except ImportError:
        raise ImportError(f"hooks in Lua need the package lupa: {sys.executable} -m pip install 'lupa<3'") from None

    def refuse(*_: object) -> Any:
        raise AttributeError("Python is out of open_transport")

    source = (Path(folder) / place).read_bytes()
    lua = lupa.LuaRuntime(
        encoding="utf-8",
        register_eval=False,
        register_builtins=False,
        unpack_returned_tuples=True,
        attribute_filter=refuse,
        max_memory=MAX_MEMORY,
    )
    lua.execute(SANDBOX, _write)
    lua.execute(source.decode())
    function = lua.globals().OnTrigger
    if function is None:
        raise NameError("the script has no function OnTrigger(trigger, app, channel, session, json)")

    def call(kind: bytes, body: bytes) -> bytes:
        if kind == REQUEST:
            raise TypeError("a script cannot be asked")
        one = msgspec.json.decode(body, type=Triggered)
        function(one.event, one.app, one.channel, one.session, one.data)
        return b""

    return call


def main() -> None:
    _, place, seconds, folder = sys.argv[1:]
    serve(lambda: load(place, folder), float(seconds))


if __name__ == "__main__":
    main()
