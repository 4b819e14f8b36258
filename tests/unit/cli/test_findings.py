"""The lines about a configuration, divided into file, line, key and message; and the answer of `push1st check --json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from push1st.cli import main
from push1st.cli.findings import Finding, divided


@pytest.mark.parametrize(
    ("line", "file", "number", "variable", "key", "message"),
    [
        ("server.yml:2: server.drain: found x", "server.yml", 2, None, "server.drain", "found x"),
        ("/etc/my apps/1.yml:30: shop.key: found x", "/etc/my apps/1.yml", 30, None, "shop.key", "found x"),
        ("server.yml:3: found a tab, allowed: spaces", "server.yml", 3, None, None, "found a tab, allowed: spaces"),
        ("apps/1.yml:1: …: unknown key, allowed: a", "apps/1.yml", 1, None, "…", "unknown key, allowed: a"),
        ("apps/1.yml: cannot be read: no", "apps/1.yml", None, None, None, "cannot be read: no"),
        ("/etc/push1st.conf: no app is configured", "/etc/push1st.conf", None, None, None, "no app is configured"),
        ("PUSH1ST_SERVER_DRAIN: server.drain: found x", None, None, "PUSH1ST_SERVER_DRAIN", "server.drain", "found x"),
        ("PUSH1ST_DRAIN: unknown variable, did you", None, None, "PUSH1ST_DRAIN", None, "unknown variable, did you"),
        ("hooks.folder: cannot keep: ro", None, None, None, "hooks.folder", "cannot keep: ro"),
        ("shop: the secret is short", None, None, None, "shop", "the secret is short"),
        ("shop, news: limits: 1", None, None, None, None, "shop, news: limits: 1"),
        ("a worker did not start", None, None, None, None, "a worker did not start"),
    ],
)
def test_a_line_is_divided(
    line: str, file: str | None, number: int | None, variable: str | None, key: str | None, message: str
) -> None:
    (found,) = divided("error", [line], {"shop"}, "/etc/push1st.conf")
    assert found == Finding("error", file, number, variable, key, message)


def test_an_address_in_a_note_is_no_place() -> None:
    (found,) = divided("note", ["cannot listen here on tcp://*:80: Permission denied"])
    assert found == Finding("note", None, None, None, None, "cannot listen here on tcp://*:80: Permission denied")


def test_a_note_may_have_the_place_of_a_key() -> None:
    (found,) = divided("note", ["server.yml:4: server.ssl.cert: the certificate a.pem expires in 9 days"])
    assert found == Finding("note", "server.yml", 4, None, "server.ssl.cert", "the certificate a.pem expires in 9 days")


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Writes a configuration with one app, and returns the exit code and the answer of `push1st check --json`."""

    def check(server: str, app: str = "key: k, secret: a-secret-that-is-long-enough-for-hmac-sha256") -> tuple[int, Any]:
        (tmp_path / "server.yml").write_text(f"api: {{ listen: false }}\ncredentials: [ apps.yml ]\n{server}")
        (tmp_path / "apps.yml").write_text(f"shop: {{ {app} }}")
        code = main(["check", "--json", "-c", str(tmp_path / "server.yml")])
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.isascii()
        return code, json.loads(printed.out)

    return check


def test_each_mistake_has_its_place_and_the_exit_code_is_1(check: Any) -> None:
    code, answer = check("server: { drain: x }\nlog: 1", "key: []")
    assert code == 1
    assert answer["good"] is False
    assert [(one["level"], one["file"], one["line"], one["key"]) for one in answer["findings"]] == [
        ("error", "server.yml", 3, "server.drain"),
        ("error", "server.yml", 4, "log"),
        ("error", "apps.yml", 1, "shop.key"),
    ]


def test_warnings_and_notes_keep_the_exit_code_0(check: Any) -> None:
    code, answer = check("server: { listen: unix://s }\ncluster: { listen: udp://*:1 }", "key: k, secret: short")
    assert code == 0
    assert (answer["good"], answer["source"][-10:]) == (True, "server.yml")
    assert {(one["level"], one["file"], one["line"], one["key"]) for one in answer["findings"]} >= {
        ("warning", "server.yml", 4, "cluster"),
        ("note", None, None, "shop"),
    }


def test_a_configuration_that_serves_no_client_is_an_error(check: Any) -> None:
    code, answer = check("", "key: k, channels: [private]")
    (found,) = answer["findings"]
    assert code == 1
    assert "no enabled app has channels" in found["message"]
    assert found["file"].endswith("server.yml")


def test_apps_that_are_all_disabled_are_a_warning_because_a_reload_accepts_them(check: Any) -> None:
    code, answer = check("", "enable: false, key: k")
    assert (code, answer["good"]) == (0, True)
    assert any("every app is disabled" in one["message"] and one["level"] == "warning" for one in answer["findings"])


def test_the_answer_contains_the_text_of_each_finding(check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = check("server: { listen: unix://s }\ncluster: { listen: udp://*:1 }", "key: k, secret: short")
    assert main(["check", "-c", str(tmp_path / "server.yml")]) == 0
    notes = [line.removeprefix("  note: ") for line in capsys.readouterr().out.splitlines() if line.startswith("  note: ")]
    assert len(notes) == len(answer["findings"])
    for note, found in zip(notes, answer["findings"], strict=True):
        assert note.endswith(found["message"])


def test_error_of_a_tls_file_and_of_the_folder_for_hooks_has_its_place(check: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    code, answer = check("server:\n  ssl:\n    enable: true\n    key: a.pem\n    cert: a.pem\nhooks: { folder: a.pem/hooks }")
    assert code == 1
    assert [(one["file"], one["line"], one["key"]) for one in answer["findings"]] == [
        ("server.yml", 7, "server.ssl.cert"),
        ("server.yml", 8, "hooks.folder"),
    ]
