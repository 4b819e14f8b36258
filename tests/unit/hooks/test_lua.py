"""The functions that a script may call, and those that it cannot reach."""

import sys
from pathlib import Path

import pytest

from push1st.hooks.child import DELIVER, REQUEST
from push1st.hooks.lua import load

BODY = b'{"event":"join","app":"a","channel":"c","session":"1.2","data":"{}"}'


def script(folder: Path, text: str):
    (folder / "hook.lua").write_text(text)
    return load("hook.lua", str(folder))


def test_function_gets_all_fields_of_the_hook(tmp_path, capsys):
    call = script(tmp_path, "function OnTrigger(...) print(...) end")
    assert call(DELIVER, BODY) == b""
    assert capsys.readouterr().out == "join\ta\tc\t1.2\t{}\n"


def test_harmless_functions_of_lua_are_available(tmp_path, capsys):
    what = "math.floor(1.5), ('a'):upper(), #table.pack(1, 2), type(os.time()), utf8.char(228), _G == _G._G"
    script(tmp_path, f"function OnTrigger() print({what}) end")(DELIVER, BODY)
    assert capsys.readouterr().out == "1\tA\t2\tnumber\tä\ttrue\n"


@pytest.mark.parametrize(
    "code",
    [
        "io.open('/etc/passwd')",
        "os.execute('true')",
        "os.exit(1)",
        "os.getenv('HOME')",
        "require('os')",
        "dofile('/etc/passwd')",
        "load('return 1')()",
        "debug.getinfo(1)",
        "python.builtins.open('/etc/passwd')",
        "package.loadlib('x', 'y')",
        "string.dump(OnTrigger)",
        "getmetatable('').__index.rep = nil",
        "collectgarbage('stop')",
        "('x'):rep(1 << 30)",
        "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1000) .. i end",
        "error('x')",
    ],
)
def test_script_cannot_reach_files_or_processes(tmp_path, capsys, code):
    call = script(tmp_path, f"function OnTrigger() print('reached', (pcall(function() {code} end))) end")
    call(DELIVER, BODY)
    assert capsys.readouterr().out == "reached\tfalse\n"


def test_print_gives_no_access_to_python(tmp_path, capsys):
    text = "function OnTrigger() for _, f in pairs({print}) do print(pcall(function() return f.__globals__ end)) end end"
    script(tmp_path, text)(DELIVER, BODY)
    assert capsys.readouterr().out.startswith("false\t")


def test_a_script_without_the_function_is_refused(tmp_path):
    with pytest.raises(NameError, match="OnTrigger"):
        script(tmp_path, "x = 1")


def test_script_cannot_authorize(tmp_path):
    with pytest.raises(TypeError):
        script(tmp_path, "function OnTrigger() end")(REQUEST, b"{}")


def test_without_lupa_the_failure_is_the_command_that_installs_it_here(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lupa", None)
    with pytest.raises(ImportError, match=f"hooks in Lua need the package lupa: {sys.executable} -m pip install 'lupa<3'"):
        script(tmp_path, "function OnTrigger() end")
