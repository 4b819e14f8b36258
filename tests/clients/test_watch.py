"""`push1st watch` prints the events of the inspector, and survives a restart of the server."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, get_args

import pytest

from push1st.cli.arguments import parser
from push1st.core.tap import MAX_RATE, TapKind
from tests.support.console import PASSWORD, Operator, console
from tests.support.paho import paho_client
from tests.support.process import DEADLINE, PUSH1ST, ServerProcess, free_ports

HASH = "scrypt$16384$8$1$81cQF1-WDiL2nPzVbPudaw$Xmpc-xGAy4gKNv_GGCB5qazxzJUq1hSZS_0m203dW2M"
Place = tuple[ServerProcess, Operator]


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def place(port: int) -> Iterator[Place]:
    with console({"server": {"proto": ["pusher", "mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}}) as found:
        yield found


class WatchCommand:
    """A running command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self.out: IO[str] = process.stdout
        self.err: IO[str] = process.stderr

    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.readline())
        return found

    def end(self, number: int = 0) -> int:
        if number:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@contextlib.contextmanager
def watch(url: str, *options: str, password: str | None = PASSWORD, ready: bool = True) -> Iterator[WatchCommand]:
    """Runs the command; if `ready` is true, waits until it watches."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUSH1ST_")}
    environment |= {} if password is None else {"PUSH1ST_CONSOLE_PASSWORD": password}
    process = subprocess.Popen(
        [*PUSH1ST, "watch", "--url", url, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            command = WatchCommand(process)
            if ready:
                assert command.err.readline() == f"watching {url} (Ctrl-C ends)\n"
            yield command
        finally:
            process.kill()


def fails(url: str, *options: str, password: str | None = PASSWORD) -> str:
    """Returns the only line of the standard error of a command that fails."""
    with watch(url, *options, password=password, ready=False) as command:
        assert command.end() == 1
        (line,) = command.err.read().splitlines()
        return line


def test_events_are_printed_as_lines_until_the_count(place: Place) -> None:
    server, operator = place
    with watch(operator.origin, "--count", "2", "--channel", "news*", "--what", "published,refused", "--data") as command:
        server.publish("other", "e", 1)
        server.publish("news", "e", "\u202e\x1b[2J")
        server.publish("news-2", "e", {"a": 1})
        first, second = command.event(), command.event()
        assert (first["what"], first["channel"], first["data"]) == ("published", "news", "\u202e\x1b[2J")
        assert (second["channel"], second["data"]) == ("news-2", '{"a": 1}')
        assert command.end() == 0


def test_events_of_a_device_are_found_by_its_client_id(place: Place, port: int) -> None:
    with watch(place[1].origin, "--count", "2", "--socket", "dev1") as command:
        with paho_client(port, client_id="dev"), paho_client(port, client_id="dev1"):
            connected = command.event()
        ended = command.event()
        assert (connected["what"], ended["what"]) == ("connected", "disconnected")
        assert (connected["client_id"], ended["client_id"], ended["socket"]) == ("dev1", "dev1", connected["socket"])
        assert command.end() == 0


def test_ctrl_c_ends_the_command_without_a_trace(place: Place) -> None:
    with watch(place[1].origin) as command:
        assert command.end(signal.SIGINT) == 130
        assert command.out.read() + command.err.read() == ""


def test_events_that_were_left_out_are_counted(place: Place) -> None:
    server, operator = place
    batch = [{"name": "e", "channel": f"flood-{number}", "data": "1"} for number in range(10)]
    with watch(operator.origin, "--channel", "flood-") as command:
        sent = shown = dropped = 0
        while sent <= MAX_RATE + 2000:
            assert server.post("/apps/app-test/batch_events", {"batch": batch}).status == 200
            sent += 10
        while shown + dropped < sent:
            line = command.event()
            dropped += line["dropped"]["published"] if "dropped" in line else 0
            shown += "what" in line
        assert shown + dropped == sent


def test_command_connects_again_after_a_restart_of_the_server() -> None:
    with console({"server": {"drain": 0}}) as (server, operator), watch(operator.origin, "--what", "published") as command:
        server.publish("news", "before", 1)
        assert command.event()["event"] == "before"
        server.stop()
        assert "events may be missing" in command.err.readline()
        server.start()
        while (line := command.err.readline()) != "watching again\n":
            assert line
        server.publish("news", "after", 1)
        assert command.event()["event"] == "after"


def test_failures_are_reported_in_one_line(place: Place, tmp_path: Path) -> None:
    url = place[1].origin
    assert fails(url, password="a wrong password").endswith("answered 401: the password is wrong")
    assert fails(url, "--what", "nothing").startswith("there is no event nothing, the events are connected, ")
    assert ": the variable is not set, and there is no terminal" in fails(url, password=None)
    assert ": PUSH1ST_CONSOLE_PASSWORD has only its hash, and there is no terminal" in fails(url, password=HASH)
    file = tmp_path / "server.yml"
    file.write_text(json.dumps({"console": {"password": HASH}}))
    assert ": console.password has only its hash, and there is no terminal" in fails(url, "-c", str(file), password=None)
    (closed,) = free_ports(1)
    assert "is the server running?" in fails(f"http://127.0.0.1:{closed}")
    assert "is not the address of a server" in fails("127.0.0.1:6003")
    assert "answered 404" in fails(f"http://127.0.0.1:{place[0].ws_port}")


def test_console_behind_a_proxy_is_reached_without_the_proxy() -> None:
    with console(origin="https://console.example.com", proxies="10.0.0.1") as (server, operator):
        url = f"http://127.0.0.1:{operator.port}"
        with watch(url, "--count", "1", "--what", "published") as command:
            server.publish("news", "e", 1)
            assert command.event()["channel"] == "news"


def test_help_names_all_kinds_of_events(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["watch", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for kind in get_args(TapKind):
        assert f"{kind}," in text or f"{kind}." in text, kind
