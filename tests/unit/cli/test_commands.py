"""The arguments of commands, and what commands make of their options."""

import argparse
import importlib

import pytest

from push1st.cli import arguments, client
from push1st.cli.serve import demo_text
from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, Config, ServerConfig, demo
from push1st.errors import ClientError, ConfigError, Rejected

COMMANDS = {
    "init": ["init"],
    "serve": ["serve"],
    "reload": ["reload"],
    "status": ["status"],
    "check": ["check"],
    "app list": ["app", "list"],
    "app show": ["app", "show", "a"],
    "app add": ["app", "add", "a"],
    "app rotate": ["app", "rotate", "a"],
    "app retire": ["app", "retire", "a"],
    "app enable": ["app", "enable", "a"],
    "app remove": ["app", "remove", "a", "--yes"],
    "token session": ["token", "session", "1.2", "private-a"],
    "token access": ["token", "access"],
    "token check": ["token", "check", "TOKEN"],
    "publish": ["publish", "c", "e"],
    "subscribe": ["subscribe", "c"],
    "history": ["history", "c"],
    "version": ["version"],
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_every_command_names_a_function_that_exists(line: list[str]) -> None:
    module, _, function = arguments.parser().parse_args(line).run.partition(":")
    assert callable(getattr(importlib.import_module(f"push1st.cli.{module}"), function))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["serve", "--worker-count", "2"], "unknown option --worker-count, did you mean --workers?"),
        (["serve", "server.yml"], "too many arguments; give the configuration file with -c FILE"),
        (["publish", "c", "e", "two", "words"], "too many arguments; put text with spaces in quotes"),
        (["check", "--sekret=hunter2"], "unknown option --sekret"),
        (["sttus", "--secret=hunter2"], "argument COMMAND: did you mean status?"),
        (["app", "ad", "--secret=hunter2"], "did you mean add?"),
    ],
)
def test_an_unknown_argument_is_rejected_without_its_text(line: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments.parser().parse_args(line)
    error = capsys.readouterr().err
    assert text in error
    assert "hunter2" not in error


@pytest.mark.parametrize(("text", "count"), [("auto", "auto"), ("1", 1), ("1024", 1024)])
def test_a_number_of_workers_is_read(text: str, count: int | str) -> None:
    assert arguments.workers(text) == count


@pytest.mark.parametrize("text", ["0", "1025", "-1", "two", "²", ""])
def test_a_wrong_number_of_workers_is_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: a whole number from 1 to 1024, or auto"):
        arguments.workers(text)


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": None, "app": None, "key": None, "secret": None, **given})


def test_without_options_the_app_of_the_demo_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUSH1ST_APP_ID", raising=False)
    found = client.select(options())
    assert (found.app.id, found.app.secret, found.assumed) == ("app-test", "secret", True)
    assert not client.select(options(app="app-test")).assumed


def test_the_secret_of_the_demo_is_not_used_for_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUSH1ST_APP_ID", raising=False)
    assert client.select(options(key="another")).app.secret == ""
    assert client.select(options(key="another", secret="own")).app.secret == "own"


def test_a_rejection_names_the_app_only_if_it_was_assumed_and_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUSH1ST_APP_ID", raising=False)
    with (
        pytest.raises(Rejected, match="no; this is the demo's app app-test"),
        client.naming_assumed_app(client.select(options())),
    ):
        raise Rejected("no", 4001)
    for selected, code in ((options(app="app-test"), 4001), (options(), 4200), (options(), 503), (options(), 0)):
        with pytest.raises(Rejected, match=r"^no$"), client.naming_assumed_app(client.select(selected)):
            raise Rejected("no", code)


@pytest.mark.parametrize(
    ("server", "api", "scheme", "url"),
    [
        (Listen("tcp", "", 6001), Listen("tcp", "::", 6002), "ws", "ws://127.0.0.1:6001"),
        (Listen("tcp", "", 6001), Listen("tcp", "::", 6002), "http", "http://[::1]:6002"),
        (Listen("tcp", "192.0.2.1", 80), Listen("unix", path="/a"), "http", "http://192.0.2.1:80"),
    ],
)
def test_a_command_reaches_the_server_of_its_configuration(server: Listen, api: Listen, scheme: str, url: str) -> None:
    config = Config(server=ServerConfig(listen=(server,)), api=ApiConfig(listen=(api,)))
    assert client.server_url(config, scheme) == url


def test_a_server_with_unix_sockets_only_has_no_url() -> None:
    config = Config(server=ServerConfig(listen=(Listen("unix", path="/a"),)), api=ApiConfig(listen=()))
    with pytest.raises(ConfigError, match="no TCP address to connect to: give one with --url"):
        client.server_url(config, "ws")


@pytest.mark.parametrize("url", ["localhost:6001", "http://", "ws://host:0", "ws://host:port", "ws://[::1"])
def test_a_text_that_is_not_a_url_is_rejected(url: str) -> None:
    with pytest.raises(ClientError, match="is not the address of a server"):
        client.split_url(url, ("ws", "wss"), "ws://127.0.0.1:6001")


def test_the_greeting_of_the_demo_names_its_addresses() -> None:
    text = demo_text(demo(), "made-at-start")
    assert "ws://127.0.0.1:6001/app/app-key" in text
    assert "--url" not in text
    moved = Config(server=ServerConfig(listen=(Listen("tcp", "127.0.0.1", 7001),)), api=demo().api, apps=demo().apps, demo=True)
    assert "subscribe my-channel --url ws://127.0.0.1:7001 &" in demo_text(moved, "made-at-start")
