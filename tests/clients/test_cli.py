"""The command line, and the demo with the commands that its first page shows."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from push1st import __version__ as push1st_version
from push1st.auth import check_access_token
from tests.support.process import APP, DEADLINE, PUSH1ST, ServerProcess, free_ports, program, push1st, running, wait_until
from tests.support.raw_socket import raw_socket
from tests.support.signing import hmac_hex


@contextlib.contextmanager
def subscribing(server: ServerProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `push1st subscribe`, which is subscribed when the block begins."""
    started = subprocess.Popen(
        [*PUSH1ST, "subscribe", "--url", server.ws, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with started as process:
        assert process.stderr is not None
        assert "subscribed" in process.stderr.readline()
        yield process
        process.terminate()


def test_publish_and_subscribe_meet(server: ServerProcess, channel: str) -> None:
    with subscribing(server, "--count", "1", channel) as subscriber:
        push1st("publish", "--api", server.api, channel, "greeting", '{"text":"hello"}')
        assert subscriber.stdout is not None
        line = subscriber.stdout.readline()
        assert line.startswith(f"{channel}  greeting  ")
        assert subscriber.wait(DEADLINE) == 0


def test_publish_and_subscribe_meet_on_a_private_channel_with_a_secret(server: ServerProcess, channel: str) -> None:
    private = f"private-{channel}"
    with subscribing(server, "--secret", "secret", private) as subscriber:
        push1st("publish", "--api", f"http://127.0.0.1:{server.ws_port}", "--secret", "secret", private, "greeting", "hello")
        assert subscriber.stdout is not None
        assert subscriber.stdout.readline() == f"{private}  greeting  hello\n"


def test_publish_prints_the_reason_of_its_failure(server: ServerProcess, channel: str) -> None:
    failed = push1st("publish", "--api", server.api, "--secret", "wrong", channel, "greeting", code=1)
    assert "auth_signature" in failed.stderr


def test_subscribe_shows_why_the_server_closed_the_connection(server: ServerProcess, channel: str) -> None:
    failed = push1st("subscribe", "--url", server.ws, "--key", "nobodys-key", channel, code=1)
    assert "the server closed the connection: 4001 App key nobodys-key does not exist" in failed.stderr


def test_subscribe_shows_which_channel_was_rejected(server: ServerProcess, channel: str) -> None:
    failed = push1st("subscribe", "--url", server.ws, "--secret", "wrong", f"private-{channel}", code=1)
    assert f"the server refused private-{channel}: " in failed.stderr
    assert "Invalid signature: " in failed.stderr


def test_publish_reports_a_refused_connection() -> None:
    (port,) = free_ports(1)
    assert push1st("publish", "--api", f"http://127.0.0.1:{port}", "c", "e", code=1).stderr


@pytest.mark.parametrize("url", ["127.0.0.1:6001", "http://127.0.0.1:6001", "ws://127.0.0.1:99999", "ws://", "ws://[::1", ""])
def test_subscribe_reports_an_invalid_address(url: str) -> None:
    (line,) = push1st("subscribe", "--url", url, "c", code=1).stderr.splitlines()
    assert re.fullmatch(r"'.*' is not the address of a server: .+, such as ws://127\.0\.0\.1:6001", line)
    assert "is the server running" not in line


@pytest.mark.parametrize("api", ["127.0.0.1:6002", "localhost:6002", "ws://127.0.0.1:6002", "http://127.0.0.1:99999", "http://"])
def test_publish_reports_an_invalid_address(api: str) -> None:
    (line,) = push1st("publish", "--api", api, "c", "e", code=1).stderr.splitlines()
    assert re.fullmatch(r"'.*' is not the address of a server: .+, such as http://127\.0\.0\.1:6002", line)


def test_an_untrusted_certificate_is_reported() -> None:
    tls = {"enable": True}
    with running({"server": {"ssl": tls, "drain": 0}, "api": {"ssl": tls}}) as server:
        for command in (
            ("subscribe", "--url", server.ws.replace("ws:", "wss:"), "c"),
            ("publish", "--api", server.api.replace("http:", "https:"), "c", "e"),
        ):
            (line,) = push1st(*command, code=1).stderr.splitlines()
            assert "its certificate is not trusted: self" in line
            assert "SSL_CERT_FILE" in line
            assert "is the server running" not in line


def test_tls_on_one_side_only_is_reported_with_the_scheme_to_use(server: ServerProcess) -> None:
    for command in (
        ("subscribe", "--url", server.ws.replace("ws:", "wss:"), "c"),
        ("publish", "--api", server.api.replace("http:", "https:"), "c", "e"),
    ):
        (line,) = push1st(*command, code=1).stderr.splitlines()
        assert line.endswith("try http:// in place of https://, or ws:// of wss://")
    tls = {"enable": True}
    with running({"server": {"ssl": tls, "drain": 0}, "api": {"ssl": tls}}) as other:
        for command in (("subscribe", "--url", other.ws, "c"), ("publish", "--api", other.api, "c", "e")):
            (line,) = push1st(*command, code=1).stderr.splitlines()
            assert line.endswith("if it uses TLS, try https:// in place of http://, or wss:// of ws://")


def test_subscribe_closes_a_refused_connection_with_1000() -> None:
    closes: list[int | None] = []

    def reject(connection: ServerConnection) -> None:
        connection.send('{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"1.2\\"}"}')
        connection.recv()
        connection.send('{"event":"pusher:subscription_error","channel":"c","data":{"type":"AuthError"}}')
        with contextlib.suppress(ConnectionClosed):
            connection.recv()
        closes.append(connection.close_code)

    with serve(reject, "127.0.0.1", 0) as other:
        threading.Thread(target=other.serve_forever).start()
        failed = push1st("subscribe", "--url", f"ws://127.0.0.1:{other.socket.getsockname()[1]}", "c", code=1)
        wait_until(lambda: closes, "the connection is closed")
        other.shutdown()
    assert failed.stderr.startswith("the server refused c: ")
    assert closes == [1000]


def test_subscribe_hides_internal_frames(channel: str) -> None:
    apps = {"app-test": {**APP, "options": {"subscription-count": True, "client-messages": True}}}
    with running(apps=apps) as server, subscribing(server, "--count", "1", channel) as subscriber:
        server.publish(channel, "greeting", "hello")
        assert subscriber.stdout is not None
        assert subscriber.stdout.read() == f"{channel}  greeting  hello\n"


def test_subscribe_shows_only_the_close_code_if_the_server_stops(channel: str) -> None:
    with running({"server": {"drain": 0}}) as server, subscribing(server, channel) as subscriber:
        server.signal()
        assert subscriber.stderr is not None
        assert subscriber.stderr.read() == "the server closed the connection: 4200 Server is stopping, reconnect\n"


def test_subscribe_shows_an_http_status_instead_of_a_handshake(server: ServerProcess) -> None:
    (line,) = push1st("subscribe", "--url", f"{server.ws}/nowhere", "c", code=1).stderr.splitlines()
    assert "it answered with HTTP status 404" in line


@pytest.fixture(scope="module")
def keeping() -> Iterator[ServerProcess]:
    """A server whose app keeps three events of each channel that begins with `chat-`."""
    with running(apps={"app-test": {**APP, "history": [{"filter": "chat-", "size": 3}]}}) as process:
        yield process


def test_history_prints_the_kept_events_with_their_positions(keeping: ServerProcess, channel: str) -> None:
    channel = f"chat-{channel}"
    for number in range(1, 5):
        keeping.publish(channel, "e", {"n": number} if number < 4 else f"four{EVIL}")
    done = push1st("history", "--api", keeping.api, channel)
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    epoch = lines[0][0].partition(":")[0]
    escapes = r"\x1b]0;title\x07\x1b[2J\nforged\r\u202e\u2066\x9b"
    assert lines == [[f"{epoch}:2", "e", '{"n": 2}'], [f"{epoch}:3", "e", '{"n": 3}'], [f"{epoch}:4", "e", f"four{escapes}"]]
    assert done.stderr == f"the position of {channel} is {epoch}:4\n"
    signed = ("history", "--api", f"http://127.0.0.1:{keeping.ws_port}", "--secret", "secret", channel)
    assert push1st(*signed, "--limit", "1", "--since", f"{epoch}:2").stdout.startswith(f"{epoch}:3 ")
    reverse = push1st(*signed, "--reverse", "--since", f"{epoch}:4").stdout.splitlines()
    assert [line.partition(" ")[0] for line in reverse] == [f"{epoch}:3", f"{epoch}:2"]


def test_history_prints_a_note_if_events_are_missing(keeping: ServerProcess, channel: str) -> None:
    keeping.publish(f"chat-{channel}", "e", "")
    done = push1st("history", "--api", keeping.api, f"chat-{channel}", "--since", "another:7")
    assert done.stderr.startswith("note: some events between another:7 and the first line are not kept\n")
    assert done.stdout.count("\n") == 1


def test_history_prints_the_reason_of_its_failure(keeping: ServerProcess) -> None:
    assert "answered 404: " in push1st("history", "--api", keeping.api, "other", code=1).stderr
    assert "since 'x' is not a position" in push1st("history", "--api", keeping.api, "chat-a", "--since", "x", code=1).stderr


def test_history_of_another_server_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        call = [*PUSH1ST, "history", "--api", f"http://127.0.0.1:{other.getsockname()[1]}", "c"]
        with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
            other.settimeout(DEADLINE)
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                _, error = process.communicate(timeout=DEADLINE)
    assert error.startswith("the server does not speak Push1st's API: ")


def test_subscribe_continues_at_a_position_that_history_prints(keeping: ServerProcess, channel: str) -> None:
    channel = f"chat-{channel}"
    for number in range(1, 4):
        keeping.publish(channel, "e", number)
    epoch = push1st("history", "--api", keeping.api, channel).stdout.partition(":")[0]
    call = [*PUSH1ST, "subscribe", "--url", keeping.ws, "--since", f"{epoch}:1", "--count", "3", channel]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as subscriber:
        assert subscriber.stderr is not None
        assert subscriber.stderr.readline() == f"{channel} {epoch}:3: no event was missed, 2 earlier events\n"
        assert subscriber.stderr.readline() == f"subscribed to {channel} (Ctrl-C ends)\n"
        keeping.publish(channel, "e", f"four{EVIL}")
        assert subscriber.stdout is not None
        shown = subscriber.stdout.read()
        assert subscriber.wait(DEADLINE) == 0
    escapes = r"\x1b]0;title\x07\x1b[2J\nforged\r\u202e\u2066\x9b"
    assert shown == f"{epoch}:2  {channel}  e  2\n{epoch}:3  {channel}  e  3\n{epoch}:4  {channel}  e  four{escapes}\n"


def test_subscribe_shows_the_last_events_of_a_private_channel(channel: str) -> None:
    private = f"private-{channel}"
    apps = {"app-test": {**APP, "history": [{"rewind": 10}]}}
    with running(apps=apps) as server:
        for data in (1, 2, 3):
            server.publish(private, "e", data)
        options = ("--url", server.ws, "--secret", "secret", "--rewind", "2", "--count", "2")
        done = push1st("subscribe", *options, private)
    assert [line.partition("  ")[2] for line in done.stdout.splitlines()] == [f"{private}  e  2", f"{private}  e  3"]
    assert "events may be missing (unknown), 2 earlier events" in done.stderr


def test_publish_with_an_idempotency_key_is_delivered_once(server: ServerProcess, channel: str) -> None:
    with subscribing(server, "--count", "2", channel) as subscriber:
        for _ in range(2):
            push1st("publish", "--api", server.api, "--idempotency-key", "order-7", channel, "e", "1")
        server.publish(channel, "e", 2)
        assert subscriber.stdout is not None
        assert subscriber.stdout.read() == f"{channel}  e  1\n{channel}  e  2\n"


EVIL = "\x1b]0;title\x07\x1b[2J\nforged\r\u202e\u2066\x9b"


def test_text_of_an_event_is_shown_with_escapes(server: ServerProcess, channel: str) -> None:
    with subscribing(server, "--count", "1", channel) as subscriber:
        answer = server.post("/apps/app-test/events", {"name": f"e{EVIL}", "channels": [channel], "data": EVIL})
        assert answer.status == 200, answer
        assert subscriber.stdout is not None
        shown = subscriber.stdout.read()
    escapes = r"\x1b]0;title\x07\x1b[2J\nforged\r\u202e\u2066\x9b"
    assert shown == f"{channel}  e{escapes}  {escapes}\n"


def test_the_answer_of_a_server_is_shown_with_escapes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        call = [*PUSH1ST, "publish", "--api", f"http://127.0.0.1:{other.getsockname()[1]}", "c", "e"]
        for status, stream in ((200, "stdout"), (500, "stderr")):
            with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                other.settimeout(DEADLINE)
                connection, _ = other.accept()
                with connection:
                    body = EVIL.encode()
                    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
                    said = dict(zip(("stdout", "stderr"), process.communicate(timeout=DEADLINE), strict=True))
            assert r"\x1b]0;title\x07\x1b[2J\nforged\r\u202e\u2066\x9b" in said[stream]
            assert said[stream].count("\n") == 1


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"key: {json.dumps(f'k{EVIL}')}", "shop.key: found text"),
        (
            'key: k\n  hook: { trigger: [ join ], endpoint: [ "http://backend.example/\\u202egnp\\u2066" ] }',
            r"example/\u202egnp\u2066",
        ),
    ],
    ids=["a rejected key", "a backend's address"],
)
def test_check_shows_text_from_files_with_escapes(tmp_path: Path, line: str, shown: str) -> None:
    (tmp_path / "server.yml").write_text("credentials: [ apps.yml ]\n")
    (tmp_path / "apps.yml").write_text(f"shop:\n  secret: a-long-random-secret-of-at-least-32-bytes\n  {line}\n")
    done = subprocess.run([*PUSH1ST, "check", "-c", str(tmp_path / "server.yml")], capture_output=True, text=True, timeout=30)
    assert shown in done.stdout + done.stderr
    assert [char for char in done.stdout + done.stderr if char != "\n" and not char.isprintable()] == []
    assert not [line for line in (done.stdout + done.stderr).split("\n") if line.startswith("forged")]


def test_publish_reports_a_server_that_does_not_speak_http() -> None:
    """The server speaks TLS, and the command does not."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        call = [*PUSH1ST, "publish", "--api", f"http://127.0.0.1:{other.getsockname()[1]}", "c", "e"]
        with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
            other.settimeout(DEADLINE)
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46\r\n")
                _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert errors.startswith("no answer from ")


@pytest.mark.parametrize("command", [("version",), ("check",), ("subscribe",)], ids=" ".join)
def test_command_ends_quietly_when_its_output_is_closed(server: ServerProcess, channel: str, command: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    more = {"version": (), "check": ("-c", str(server.folder / "server.yml")), "subscribe": ("--url", server.ws, channel)}
    with subprocess.Popen([*PUSH1ST, *command, *more[command[0]]], stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        if command == ("subscribe",):
            server.until_sessions(channel, 1)
            server.publish(channel, "greeting", "hello")
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if not line.startswith("subscribed")] == []


def test_session_token_equals_the_token_of_the_api(server: ServerProcess) -> None:
    offline = push1st("token", "session", "-c", str(server.folder / "server.yml"), "--app", "app-test", "1.2", "private-x")
    assert offline.stdout.strip() == hmac_hex("secret", "1.2:private-x")


def test_the_access_token_opens_a_channel(server: ServerProcess, channel: str) -> None:
    private = f"private-{channel}"
    made = push1st("token", "access", "-c", str(server.folder / "server.yml"), "--app", "app-test", "--channel", private)
    with raw_socket(server, private, query=f"token={made.stdout.strip()}"):
        server.until_sessions(private, 1)


@pytest.mark.parametrize(
    ("pattern", "note"),
    [
        ("private-devices/kitchen/*", "note: 'private-devices/kitchen/*' contains /"),
        ("private-*.temp", "note: in 'private-*.temp', only a * at the end is a wildcard"),
        ("private-devices.+", "note: in 'private-devices.+', only"),
        ("private-devices.#", "note: in 'private-devices.#', only"),
        ("private-devices.*", ""),
        ("*", ""),
    ],
)
def test_channel_of_a_token_that_looks_like_a_filter_has_a_note(pattern: str, note: str) -> None:
    done = push1st("token", "access", "--app", "home", "--secret", "secret", "--channel", pattern)
    assert done.stderr.startswith(note) if note else done.stderr == ""
    assert check_access_token(("secret",), "home", done.stdout.strip(), 0).channels == (pattern,)


def test_access_token_names_the_user_of_an_option() -> None:
    options = ("token", "access", "--app", "home", "--secret", "secret")
    named = push1st(*options, "--user", "kitchen").stdout.strip()
    assert check_access_token(("secret",), "home", named, 0).sub == "kitchen"
    assert check_access_token(("secret",), "home", push1st(*options).stdout.strip(), 0).sub is None


SHOP = {"shop": {"key": "shop-key", "secret": "a-long-random-secret-of-at-least-32-bytes", "channels": ["public", "private"]}}


@pytest.fixture(scope="module")
def shop() -> Iterator[ServerProcess]:
    """Runs a server whose only app is not the demo's."""
    server = ServerProcess()
    (server.folder / "apps" / "apps.yml").write_text(json.dumps(SHOP))
    yield server.start()
    server.stop()


def test_publish_and_subscribe_take_app_and_addresses_from_a_configuration(shop: ServerProcess, channel: str) -> None:
    file, name = str(shop.folder / "server.yml"), f"private-{channel}"
    with subprocess.Popen(
        [*PUSH1ST, "subscribe", "-c", file, "--count", "1", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as subscriber:
        assert subscriber.stderr is not None
        assert subscriber.stdout is not None
        assert "subscribed" in subscriber.stderr.readline()
        assert push1st("publish", "-c", file, "--app", "shop", name, "greeting", "hello").stderr == ""
        assert subscriber.stdout.read() == f"{name}  greeting  hello\n"


def test_an_option_wins_over_the_configuration(shop: ServerProcess) -> None:
    file = str(shop.folder / "server.yml")
    assert "auth_signature" in push1st("publish", "-c", file, "--secret", "wrong", "c", "e", code=1).stderr
    assert "4001" in push1st("subscribe", "-c", file, "--key", "wrong", "c", code=1).stderr
    token = push1st("token", "session", "-c", file, "--secret", "secret", "1.2", "private-x").stdout.strip()
    assert token == hmac_hex("secret", "1.2:private-x")


@pytest.mark.parametrize("command", ["publish", "subscribe", "token session"])
def test_an_app_that_the_configuration_does_not_have_is_rejected(shop: ServerProcess, command: str) -> None:
    file = str(shop.folder / "server.yml")
    assert push1st(*command.split(), "-c", file, "--app", "shoop", "1.2", "private-x", code=1).stderr == (
        f"there is no app shoop in {file}. Select one with --app: shop\n"
    )


def test_a_rejection_of_the_demo_s_app_names_the_options_that_select_another(shop: ServerProcess) -> None:
    for failed in (
        push1st("publish", "--api", shop.api, "c", "e", code=1),
        push1st("subscribe", "--url", shop.ws, "c", code=1),
    ):
        (line,) = failed.stderr.splitlines()
        assert line.endswith(
            "this is the demo's app app-test with the key app-key, for another app: -c FILE, or --app with --key and --secret"
        )
    assert "demo" not in push1st("publish", "--api", shop.api, "--app", "nobody", "c", "e", code=1).stderr


def test_publish_notes_a_channel_that_the_app_does_not_allow(shop: ServerProcess) -> None:
    done = push1st("publish", "-c", str(shop.folder / "server.yml"), "presence-x", "e")
    assert done.stderr == "note: nobody can subscribe to presence-x: app shop has no presence channels, only private, public\n"


def test_publish_prints_no_note_for_protected_channels_of_an_app_with_private_ones(shop: ServerProcess) -> None:
    assert push1st("publish", "-c", str(shop.folder / "server.yml"), "protected-x", "e").stderr == ""


def test_publish_notes_that_pusher_clients_cannot_subscribe_to_the_channel(server: ServerProcess) -> None:
    done = push1st("publish", "--api", server.api, "a/b", "e")
    assert done.stderr.startswith("note: Pusher clients cannot subscribe to a/b: channel name ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("session", "private-x", "1.2"), "found the socket id 'private-x', allowed: .*; it comes before the channel"),
        (("session", "greeting", "private-x"), "found the socket id 'greeting', allowed: "),
        (("session", "1.2", "hall"), "found the public channel 'hall', allowed: private-…"),
        (("access", "--channel", ""), "a channel name is empty"),
        (("access", "--user", ""), "user id '' must have 1 to 128 characters"),
    ],
)
def test_arguments_that_make_no_useful_token_are_rejected(arguments: tuple[str, ...], said: str) -> None:
    failed = push1st("token", *arguments, code=1)
    assert re.match(said, failed.stderr)
    assert failed.stdout == ""


def test_a_token_of_the_demo_s_app_comes_with_a_note() -> None:
    done = push1st("token", "session", "1.2", "private-x")
    assert done.stderr.startswith("note: a token for the demo's app app-test, signed with its public secret; ")
    assert push1st("token", "session", "--app", "app-test", "1.2", "private-x").stderr == ""
    done = push1st("token", "session", "--secret", "other", "1.2", "private-x")
    assert done.stderr.startswith("note: a token for the demo's app app-test, signed with the given secret; ")


def test_an_app_of_another_server_is_selected_by_options_alone(shop: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSH1ST_CONFIG", str(shop.folder / "server.yml"))
    token = push1st("token", "session", "--app", "other", "--secret", "secret", "1.2", "private-x")
    assert (token.stdout.strip(), token.stderr) == (hmac_hex("secret", "1.2:private-x"), "")
    failed = push1st("publish", "--app", "other", "--key", "k", "--secret", "s", "c", "e", code=1)
    assert "there is no app 'other'" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("publish", "c", "e", "d", "--secrt", "hidden"),
            "push1st publish: error: unknown option --secrt, did you mean --secret?",
        ),
        (("publish", "c", "e", "d", "--secrt=hidden"), "push1st publish: error: unknown option --secrt, did you mean --secret?"),
        (
            ("publish", "--secret", "hidden", "c", "e", "d", "hidden"),
            "push1st publish: error: too many arguments; put text with ",
        ),
        (
            ("serve", "server.yml"),
            "push1st serve: error: too many arguments; give the configuration file with -c FILE",
        ),
        (
            ("token", "session", "1.2", "private-x", "", "--bogus", "hidden"),
            "push1st token session: error: unknown option --bogus",
        ),
    ],
)
def test_an_unknown_argument_is_reported_by_its_subcommand_and_without_secrets(arguments: tuple[str, ...], said: str) -> None:
    failed = push1st(*arguments, code=2)
    assert f"\n{said}" in failed.stderr
    assert failed.stderr.startswith(f"usage: {said.partition(': error')[0]} ")
    assert "hidden" not in failed.stderr


def test_the_variable_of_publish_and_subscribe_disturbs_no_other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSH1ST_APP_SECRET", "secret")
    assert push1st("token", "session", "1.2", "private-x").stdout.strip() == hmac_hex("secret", "1.2:private-x")


def test_check_prints_the_effective_configuration(server: ServerProcess) -> None:
    said = push1st("check", "-c", str(server.folder / "server.yml")).stdout
    assert str(server.ws_port) in said
    assert "app-test" in said
    assert "secret" not in said.replace("the secret is shorter", "").replace("random secret", "").replace("no secret", "")


@pytest.mark.parametrize(
    ("apps", "said"),
    [
        ("{}", "no app is configured"),
        ("shop: { key: k, channels: [ private ] }", "no enabled app has channels"),
    ],
)
def test_check_fails_where_no_client_can_be_served(tmp_path: Path, apps: str, said: str) -> None:
    (tmp_path / "server.yml").write_text("credentials: [ apps.yml ]\n")
    (tmp_path / "apps.yml").write_text(apps)
    failed = push1st("check", "-c", str(tmp_path / "server.yml"), code=1)
    assert failed.stderr.startswith(f"{tmp_path}/server.yml: {said}")
    assert failed.stdout == ""


def test_check_reads_a_configuration_that_is_only_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "-c FILE, by PUSH1ST_CONFIG, or by PUSH1ST_APP_ID" in push1st("check", code=2).stderr
    monkeypatch.setenv("PUSH1ST_APP_ID", "shop")
    monkeypatch.setenv("PUSH1ST_APP_KEY", "a-key")
    monkeypatch.setenv("PUSH1ST_APP_SECRET", "a-long-random-secret-of-at-least-32-bytes")
    assert push1st("check").stdout.startswith("the environment: good\n")


def test_check_reports_several_workers_without_a_usable_broker(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("server: { workers: 2 }\nbroker: embedded:///nowhere/valkey-server\n")
    done = push1st("check", "-c", str(tmp_path / "server.yml"), code=1)
    assert "cannot run /nowhere/valkey-server" in done.stderr
    assert "good" not in done.stdout


def test_check_prints_hooks_authorize_endpoints_and_the_broker(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text(
        "server: { workers: 2 }\nbroker: redis://:hidden@10.0.0.9:6379/0\ncredentials: [ apps.yml ]\n"
    )
    (tmp_path / "apps.yml").write_text("""
shop:
  key: a-key
  secret: a-long-random-secret-of-at-least-32-bytes
  webhooks:
    - url: https://me:hidden@example.com/rooms?token=hidden
      events: [ channel_occupied, channel_vacated ]
    - url: py://shop_hooks:on_event
  hook: { trigger: [ join, leave ], endpoint: http://127.0.0.1:8080/hook }
  authorize: { url: http://127.0.0.1:5000/may, on: [ subscribe, connect ] }
""")
    said = push1st("check", "-c", str(tmp_path / "server.yml")).stdout
    assert "hidden" not in said
    assert [line.strip() for line in said.splitlines() if re.match("  2 workers|  broker|    ", line)] == [
        "2 workers",
        "broker: server 10.0.0.9:6379, with a password, database 0, prefix push1st",
        "tells https://…@example.com/rooms?… of channel_occupied, channel_vacated",
        "tells py://shop_hooks:on_event of all events",
        "tells http://127.0.0.1:8080/hook of join, leave",
        "asks http://127.0.0.1:5000/may on connect, subscribe",
    ]


def test_check_names_functions_that_apps_cannot_call(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("credentials: [ apps.yml ]\n")
    (tmp_path / "apps.yml").write_text("""
shop:
  key: a-key
  secret: a-long-random-secret-of-at-least-32-bytes
  webhooks:
    - url: py://shop_hooks:on_event
    - url: py://shop_hooks:nothing
    - url: py://no_such_module:on_event
  hook: { trigger: [ join ], endpoint: lua://hook.lua }
""")
    (tmp_path / "shop_hooks.py").write_text("def on_event(event): ...\n")
    (tmp_path / "hook.lua").write_text("this is no Lua")
    said = push1st("check", "-c", str(tmp_path / "server.yml")).stdout
    notes = [line for line in said.splitlines() if "cannot be called" in line]
    assert [line.partition(" cannot be called")[0] for line in notes] == [
        "  note: shop: lua://hook.lua",
        "  note: shop: py://no_such_module:on_event",
        "  note: shop: py://shop_hooks:nothing",
    ]
    assert "LuaSyntaxError" in notes[0]
    assert "No module named 'no_such_module'" in notes[1]
    assert "has no attribute 'nothing'" in notes[2]


def test_check_rejects_an_unknown_key_and_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("server:\n    listen: tcp://127.0.0.1:0\n    listen: tcp://127.0.0.1:0\n")
    failed = push1st("check", "-c", str(tmp_path / "server.yml"), code=1)
    assert "listen" in failed.stderr
    assert "server.yml:3" in failed.stderr


def test_the_first_line_of_the_log_is_the_version_that_runs(server: ServerProcess) -> None:
    first = (server.folder / "stderr").read_text().splitlines()[0]
    assert re.search(rf"starting .* config=\S*server\.yml python=3\.\S+ version={re.escape(push1st_version)}$", first), first


def test_serve_refuses_a_port_that_is_taken(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text(f"server:\n    listen: {server.ws.replace('ws', 'tcp')}\napi:\n    listen: false\n")
    failed = push1st("serve", "-c", str(tmp_path / "server.yml"), code=1)
    assert str(server.ws_port) in failed.stderr


def test_serve_names_the_broker_that_it_cannot_use(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "server.yml").write_text(
        f"server: {{ listen: 'tcp://127.0.0.1:0' }}\napi: {{ listen: false }}\nbroker: redis://:hidden@127.0.0.1:{port}\n"
    )
    failed = push1st("serve", "-c", str(tmp_path / "server.yml"), code=1)
    assert f"the broker cannot be used: server 127.0.0.1:{port}: " in failed.stderr
    assert "hidden" not in failed.stderr


def test_program_without_a_command_lists_its_commands() -> None:
    said = push1st(code=2).stderr
    assert "run the server" in said
    assert "Begin with" in said


def test_version_is_the_package_s() -> None:
    assert re.match(r"push1st \d+\.\d+", push1st("version").stdout)


@pytest.mark.parametrize("command", ["serve", "check", "token session", "token access", "publish", "subscribe", "version"])
def test_every_command_has_help(command: str) -> None:
    assert push1st(*command.split(), "--help").stdout


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs `push1st serve` without a configuration, on ports of its own."""
    ws_port, api_port = free_ports(2)
    listen = {"PUSH1ST_SERVER_LISTEN": f"tcp://127.0.0.1:{ws_port}", "PUSH1ST_API_LISTEN": f"tcp://127.0.0.1:{api_port}"}
    with open(tmp_path / "stderr", "w") as errors:
        process = subprocess.Popen(
            [*PUSH1ST, "serve"], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=tmp_path, env={**os.environ, **listen}
        )
    with process:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_the_demo_s_lines_to_paste_show_a_message(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    assert demo.stdout is not None
    text = ""
    while "curl" not in text:
        line = demo.stdout.readline()
        assert line, "the demo ended"
        text += line
    assert "demo" in text
    assert "Not for production" in text
    program("curl")
    subscribe, pause, curl = (line.strip() for line in text.splitlines()[-3:])
    (port,) = re.findall(r"WebSockets +ws://127\.0\.0\.1:(\d+)", text)
    # The commands of the page are unchanged, except that the test waits for the subscriber in place of the pause.
    assert pause.startswith("sleep")
    with open(tmp_path / "seen", "w+") as seen:
        shell = subprocess.Popen(["bash", "-c", f"exec {subscribe.rstrip('& ')}"], stdout=seen, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: "subscribed" in (tmp_path / "seen").read_text(), f"subscribed on port {port}")
            answer = subprocess.run(["bash", "-c", curl], check=True, capture_output=True, text=True, timeout=DEADLINE)
            assert json.loads(answer.stdout)["channels"] == {"my-channel": 1}
            wait_until(lambda: "my-channel  greeting  hello" in (tmp_path / "seen").read_text(), "the message is shown")
        finally:
            shell.terminate()
            shell.wait()


def test_first_configuration_serves_at_once(channel: str) -> None:
    server = ServerProcess()
    for name in ("server.yml", "apps/apps.yml"):
        (server.folder / name).unlink()
    assert "created" in push1st("init", str(server.folder)).stdout
    file = server.folder / "server.yml"
    assert "good" in push1st("check", "-c", str(file)).stdout
    text = file.read_text().replace("tcp://*:6001", f"tcp://127.0.0.1:{server.ws_port}")
    file.write_text(text.replace("tcp://127.0.0.1:6002", f"[ tcp://127.0.0.1:{server.api_port}, unix://{server.unix} ]"))
    server.start()
    with subprocess.Popen(
        [*PUSH1ST, "subscribe", "-c", str(file), "--count", "1", f"private-{channel}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as subscriber:
        assert subscriber.stderr is not None
        assert subscriber.stdout is not None
        assert "subscribed" in subscriber.stderr.readline()
        push1st("publish", "-c", str(file), f"private-{channel}", "greeting", "hello")
        assert subscriber.stdout.read() == f"private-{channel}  greeting  hello\n"
    server.stop()


def test_a_token_that_the_check_accepts_opens_a_channel_and_a_rejected_token_does_not(
    server: ServerProcess, channel: str
) -> None:
    private, file = f"private-{channel}", str(server.folder / "server.yml")
    good = push1st("token", "access", "-c", file, "--app", "app-test", "--channel", private).stdout.strip()
    assert "accepted" in push1st("token", "check", "-c", file, "--channel", private, good).stdout
    with raw_socket(server, private, query=f"token={good}"):
        server.until_sessions(private, 1)
    bad = push1st("token", "access", "-c", file, "--app", "app-test", "--secret", "wrong", "--channel", private).stdout.strip()
    assert "rejected" in push1st("token", "check", "-c", file, "--channel", private, bad, code=1).stdout
    with pytest.raises(ConnectionClosed), raw_socket(server, private, query=f"token={bad}") as socket:
        socket.receive()
