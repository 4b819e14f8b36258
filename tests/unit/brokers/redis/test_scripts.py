"""The Lua files: the documentation of their arguments, and the helper functions that each script contains."""

import re
from importlib import resources

import pytest

from push1st.brokers.redis import scripts

FOLDER = resources.files("push1st.brokers.redis") / "lua"
FILES = {file.name: file.read_text() for file in FOLDER.iterdir()}
OF_SCRIPTS = sorted(FILES.keys() - {"helpers.lua"})


@pytest.mark.parametrize("name", OF_SCRIPTS)
def test_file_names_each_argument_on_a_line(name):
    head = FILES[name].split("\nlocal ", 1)[0]
    code = FILES[name].removeprefix(head)
    named = [int(n) for n in re.findall(r"^-- ARGV\[(\d+)…?\] ", head, re.MULTILINE)]
    assert re.search(r"^-- KEYS\[1\] ", head, re.MULTILINE)
    assert named == list(range(1, len(named) + 1))
    assert {int(n) for n in re.findall(r"ARGV\[(\d+)\]", code)} - set(named) <= ({12, 14} if name == "join.lua" else set())


def test_every_file_is_a_script_that_is_loaded():
    assert len({script.digest for script in scripts.SCRIPTS}) == len(scripts.SCRIPTS) == len({*OF_SCRIPTS, "append.lua, short"})
    words = scripts._words("'PUBLISH'", 1)
    assert all(any(scripts._filled(FILES[name], words) in script.text for script in scripts.SCRIPTS) for name in OF_SCRIPTS)


def test_script_has_only_the_helpers_that_it_calls():
    defined = {one: set(re.findall(r"^local function (\w+)", one.text, re.MULTILINE)) for one in scripts.SCRIPTS}
    assert defined[scripts.CACHED] == defined[scripts.READ_IF_EPOCH] == set()
    assert defined[scripts.APPEND] == set()
    assert {"append_to_logs", "cache", "retain"} <= defined[scripts.APPEND_ALL]
    assert defined[scripts.TAKE] == {"allow_when_full"}
    assert defined[scripts.SIGN_IN] == {"edge", "has_lease"}
    assert {"drop_member", "publish_removed", "hold", "wants"} <= defined[scripts.EVICT_NODE]


def test_no_placeholder_is_left():
    for script in scripts.SCRIPTS:
        code = re.sub(r"--.*", "", script.text + script.sharded)
        assert not re.search(r"CLOCK|MAX_HOOK_EVENTS|(?<!')\bS?PUBLISH\b(?!')", code)
        assert "'PUBLISH'" not in re.sub(r"--.*", "", script.sharded)
