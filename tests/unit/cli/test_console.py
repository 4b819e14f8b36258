"""`push1st console password`, and the console of the demo."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from push1st.cli import main
from push1st.cli.configuration import listening
from push1st.cli.serve import demo_text, with_demo_console
from push1st.config.addresses import Listen
from push1st.config.load import demo as demo_with
from push1st.config.model import Config, ConsoleConfig, LogConfig, demo
from push1st.console.passwords import PasswordHash

TEXT = "correct horse battery"
PUSH1ST = str(Path(sys.executable).with_name("push1st"))


def made(text: str, monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = main(["console", "password"])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("text", [TEXT, TEXT + "\n", TEXT + "\nanother line\n"])
def test_hash_of_the_first_line_is_printed(text, monkeypatch, capsys):
    code, out, err = made(text, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert PasswordHash(out.strip()).fits(TEXT)
    assert made(text, monkeypatch, capsys)[1] != out, "each hash has a salt of its own"


@pytest.mark.parametrize("text", ["", "hunter2", f"hunter2{'x' * 2000}", "hunter2\thunter2", "scrypt$hunter2hunter2"])
def test_unusable_password_is_rejected_and_not_shown(text, monkeypatch, capsys):
    code, out, err = made(text, monkeypatch, capsys)
    assert (code, out) == (1, "")
    assert "12 to 512 characters" in err
    assert "hunter2" not in err


@pytest.mark.parametrize(("again", "code"), [(TEXT, 0), ("another password", 1)])
def test_terminal_does_not_show_the_password_that_is_typed_twice(again, code):
    own, theirs = pty.openpty()
    with subprocess.Popen(
        [PUSH1ST, "console", "password"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as run:
        os.close(theirs)
        shown = b""
        for typed, prompt in ((TEXT, b"Password of the console: "), (again, b"The same password again: ")):
            while prompt not in shown:
                shown += os.read(own, 4096)
            os.write(own, typed.encode() + b"\n")
        while chunk := read(own):
            shown += chunk
        assert run.wait(10) == code
    os.close(own)
    assert TEXT.encode() not in shown
    assert (b"scrypt$16384$8$1$" in shown) is (code == 0)
    assert (b"the two passwords differ" in shown) is (code == 1)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the program has ended
        return b""


def test_demo_on_a_terminal_has_a_console_and_shows_its_password():
    config = with_demo_console(demo(), "made-at-start", True)
    assert [str(one) for one in config.console.listens] == ["tcp://127.0.0.1:6003"]
    text = demo_text(config, "made-at-start")
    assert "    console     http://127.0.0.1:6003   (password made-at-start)\n" in text
    assert "console on http://127.0.0.1:6003" in listening(config)
    assert "made-at-start" not in "".join(listening(config))


def test_address_of_the_console_of_the_demo_has_an_effect():
    config = demo_with({"PUSH1ST_CONSOLE_LISTEN": "tcp://127.0.0.1:7003"})
    assert [line for line in config.warnings if "console" in line], "without a terminal there is no console"
    shown = with_demo_console(config, "made-at-start", True)
    assert "http://127.0.0.1:7003" in demo_text(shown, "made-at-start")
    assert [line for line in shown.warnings if "console" in line] == []


def test_demo_whose_output_is_a_file_has_no_console():
    assert with_demo_console(demo(), "made-at-start", False) == demo()
    assert "made-at-start" not in demo_text(demo(), "made-at-start")


def replaced(**changes) -> Config:
    return msgspec.structs.replace(demo(), **changes)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        replaced(log=LogConfig(format="json")),
        replaced(console=ConsoleConfig(password="an own password")),
        replaced(console=ConsoleConfig(listen=(Listen("tcp", "", 6003),))),
        replaced(console=ConsoleConfig(listen=())),
    ],
    ids=["no demo", "no text", "an own password", "other machines reach it", "no address"],
)
def test_other_configurations_get_no_password(config):
    assert with_demo_console(config, "made-at-start", True) == config
