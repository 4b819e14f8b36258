"""`push1st app` on files: what each command writes, keeps, prints, and refuses."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from push1st.cli import app_files, main
from push1st.config.load import load
from push1st.config.model import AppConfig

SERVER = "# of people\ncredentials: [ apps/*.yml ]\n"
SHOP = """# comment above
shop:   # beside
  key: a-key   # the key
  secret: the-old-one   # since May
  channels: [ public, private ]
"""


class Folder:
    """A configuration, and the command in its folder. `out`, `err`: what the last command printed."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        self.out = self.err = ""
        (path / "apps").mkdir()
        self.write("server.yml", SERVER)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_bytes(text.encode())

    def text(self, name: str) -> str:
        return (self.path / name).read_bytes().decode()

    def run(self, *arguments: str, code: int = 0) -> str:
        assert main(["app", *arguments, "-c", str(self.path / "server.yml")]) == code
        self.out, self.err = self._capsys.readouterr()
        return self.out

    def app(self, id: str = "shop") -> AppConfig:
        return next(app for app in load(self.path / "server.yml", {}).apps if app.id == id)


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {key: value for key, value in os.environ.items() if not key.startswith("PUSH1ST_")})
    return Folder(tmp_path, capsys)


@pytest.fixture
def shop(folder: Folder) -> Folder:
    folder.write("apps/shop.yml", SHOP)
    return folder


# Adding


def test_add_creates_a_file_that_only_its_owner_reads(folder: Folder) -> None:
    folder.run("add", "shop", "--name", "The shop", "--origin", "https://a.example", "--channels", "public,private")
    app = folder.app()
    assert (app.name, app.origins, sorted(app.channels)) == ("The shop", ("https://a.example",), ["private", "public"])
    assert re.fullmatch(r"[0-9a-f]{20}", app.key)
    assert re.fullmatch(r"[0-9a-f]{64}", app.secret)
    assert folder.out == f"created shop in apps/shop.yml\nkey    {app.key}\nsecret {app.secret}\n"
    assert "push1st reload" in folder.err
    assert stat.S_IMODE((folder.path / "apps/shop.yml").stat().st_mode) & 0o137 == 0
    assert os.listdir(folder.path / "apps") == ["shop.yml"]


def test_add_creates_the_folder_of_the_pattern(folder: Folder) -> None:
    folder.write("server.yml", "credentials: clients/app-*.yaml\n")
    folder.run("add", "shop", "--json")
    assert json.loads(folder.out)["file"] == "clients/app-shop.yaml"
    assert folder.app().secret == json.loads(folder.out)["secret"]


@pytest.mark.parametrize(
    ("arguments", "server", "problem"),
    [
        (("shop",), "credentials: apps.yml\n", "needs a pattern such as"),
        (("shop",), "server: { drain: 1 }\n", "needs a pattern such as"),
        ((".shop",), SERVER, "needs a pattern such as"),
        (("a/b",), SERVER, "visible ASCII characters"),
        (("shop", "--channels", "publik"), SERVER, "did you mean public"),
        (("shop", "--origin", "not an origin"), SERVER, "an origin such as"),
    ],
)
def test_add_refuses(folder: Folder, arguments: tuple[str, ...], server: str, problem: str) -> None:
    folder.write("server.yml", server)
    folder.write("apps.yml", "")
    folder.run("add", *arguments, code=1)
    assert problem in folder.err
    assert os.listdir(folder.path / "apps") == []


def test_mistake_in_an_option_names_the_option(folder: Folder) -> None:
    folder.run("add", "chat", "--channels", "public,privat", code=1)
    assert folder.err.startswith('push1st app add: --channels: found "privat" (text), allowed: ')
    folder.run("add", "b c", code=1)
    assert folder.err.startswith("push1st app add: ID: found 'b c', allowed: ")
    assert os.listdir(folder.path / "apps") == []


def test_origin_that_no_browser_sends_has_a_note(folder: Folder) -> None:
    folder.run("add", "chat", "--origin", "https://*.x")
    assert 'note: --origin: found "https://*.x", but browsers send one whole origin' in folder.err


def test_add_changes_no_app_that_exists(shop: Folder) -> None:
    shop.run("add", "shop", code=1)
    assert "exists" in shop.err
    shop.write("apps/other.yml", "# a file without an app\n")
    shop.run("add", "other", code=1)
    assert "File exists" in shop.err
    assert (shop.text("apps/shop.yml"), shop.text("apps/other.yml")) == (SHOP, "# a file without an app\n")


# Rotating and retiring


def test_rotate_and_retire_change_only_the_secret(shop: Folder) -> None:
    os.chmod(shop.path / "apps/shop.yml", 0o640)
    shop.run("rotate", "shop")
    new = shop.app().secret
    assert shop.app().secrets == (new, "the-old-one")
    assert shop.text("apps/shop.yml") == SHOP.replace("the-old-one", f'["{new}", "the-old-one"]')
    assert stat.S_IMODE((shop.path / "apps/shop.yml").stat().st_mode) == 0o640
    assert (shop.out.count(new), "the-old-one" in shop.out + shop.err) == (1, False)
    shop.run("retire", "shop")
    assert shop.text("apps/shop.yml") == SHOP.replace("the-old-one", f'"{new}"')
    assert new not in shop.out + shop.err


def test_an_app_has_at_most_three_secrets(shop: Folder) -> None:
    shop.run("rotate", "shop")
    shop.run("rotate", "shop")
    assert len(shop.app().secrets) == 3
    shop.run("rotate", "shop", code=1)
    assert "retire" in shop.err
    shop.run("retire", "shop")
    shop.run("retire", "shop", code=1)
    assert "no older secret" in shop.err


def test_json_shows_a_new_secret_once(shop: Folder) -> None:
    found = json.loads(shop.run("rotate", "shop", "--json"))
    assert found == {"id": "shop", "secret": shop.app().secret, "secrets": 2, "file": "apps/shop.yml"}
    assert json.loads(shop.run("retire", "shop", "--json")) == {"id": "shop", "retired": 1, "file": "apps/shop.yml"}
    assert json.loads(shop.run("show", "shop", "--json"))["secrets"] == [64]


def test_an_app_of_a_file_with_others_is_not_changed(shop: Folder) -> None:
    both = SHOP + "other: { key: b, secret: the-other-one }\n"
    shop.write("apps/shop.yml", both)
    for command in ("rotate", "disable", "remove"):
        shop.run(command, "shop", *(["--yes"] if command == "remove" else []), code=1)
        assert "apps/shop.yml" in shop.err
        assert "apps/shop.yml:2" in shop.err
        assert "one" not in shop.err.replace("only", "")
        assert shop.text("apps/shop.yml") == both
    shop.run("rotate", "shop", code=1)
    assert re.search(r'secret: \["[0-9a-f]{64}", the present secret\]', shop.err)


def test_a_variable_that_overrides_the_change_is_named(shop: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PUSH1ST_APP_SECRET", "of-the-environment")
    shop.run("rotate", "shop")
    assert shop.app().secrets[1:] == ("the-old-one",)
    assert "the variable PUSH1ST_APP_SECRET, which is set here, ignores this change" in shop.err


# Enabling, disabling and removing


def test_disable_and_enable_keep_everything_else(shop: Folder) -> None:
    shop.run("disable", "shop")
    assert shop.text("apps/shop.yml") == SHOP.replace("  key", "  enable: false\n  key", 1)
    assert not shop.app().enable
    shop.run("enable", "shop")
    assert shop.text("apps/shop.yml") == SHOP.replace("  key", "  enable: true\n  key", 1)
    assert "push1st reload" in shop.err
    before = shop.text("apps/shop.yml")
    assert shop.run("enable", "shop") == "already enabled: shop in apps/shop.yml\n"
    assert shop.err == "", "no reload is needed"
    assert shop.text("apps/shop.yml") == before


def test_the_only_app_is_removed_only_if_it_is_disabled(shop: Folder) -> None:
    """A reload rejects a configuration without apps, and nobody could bring the secret back."""
    shop.run("remove", "shop", "--yes", "--reload", code=1)
    assert "`push1st app disable shop --reload`" in shop.err
    assert shop.text("apps/shop.yml") == SHOP
    shop.run("disable", "shop")
    shop.run("remove", "shop", "--yes")
    assert os.listdir(shop.path / "apps") == []


def test_remove_deletes_the_file_only_with_yes(shop: Folder) -> None:
    shop.write("apps/other.yml", "other: { key: b, secret: the-other-one }\n")
    shop.run("remove", "shop", code=1)
    assert "--yes" in shop.err
    assert shop.app().enable
    shop.run("remove", "shop", "--yes")
    assert os.listdir(shop.path / "apps") == ["other.yml"]


def test_remove_deletes_a_symbolic_link_and_its_file(shop: Folder) -> None:
    shop.run("disable", "shop")
    os.rename(shop.path / "apps/shop.yml", shop.path / "linked.yml")
    os.symlink(shop.path / "linked.yml", shop.path / "apps/shop.yml")
    shop.run("remove", "shop", "--yes")
    assert os.listdir(shop.path / "apps") == []
    assert not (shop.path / "linked.yml").exists()
    assert shop.run("list") == ""
    assert shop.err.endswith("server.yml has no app: `push1st app add ID` adds one\n")


def test_purge_of_an_unknown_app_needs_yes(shop: Folder) -> None:
    shop.run("remove", "gone", "--purge", code=1)
    assert "--yes" in shop.err
    shop.run("remove", "gone", "--purge", "--yes")
    assert "there is no broker" in shop.err


def test_purge_without_its_broker_fails_after_the_removal(shop: Folder) -> None:
    shop.write("server.yml", SERVER + "broker: redis://127.0.0.1:1\n")
    shop.run("disable", "shop")
    shop.run("remove", "shop", "--purge", "--yes", code=1)
    assert "repeat the command" in shop.err
    assert os.listdir(shop.path / "apps") == []


# Listing


def test_list_and_show_print_no_secret(shop: Folder) -> None:
    shop.write("apps/b.yml", "b: { key: b-key, secret: [ the-new-one, the-old-one ], enable: false, name: Büro }\n")
    assert shop.run("list") == (
        "b  key b-key  secret of 11 bytes, secret of 11 bytes  apps/b.yml:1  (disabled)\n"
        "shop  key a-key  secret of 11 bytes  apps/shop.yml:2\n"
    )
    assert [one["id"] for one in json.loads(shop.run("list", "--json"))] == ["b", "shop"]
    assert re.search(r"^channels +private, public$", shop.run("show", "shop"), re.MULTILINE)
    for command in (["list"], ["list", "--json"], ["show", "b"], ["show", "b", "--json"]):
        assert "the-" not in shop.run(*command)


def test_an_unknown_app_and_a_missing_configuration_are_named(shop: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "rotate", "retire", "enable", "remove"):
        shop.run(command, "nobody", code=1)
        assert "no app 'nobody'" in shop.err
    assert main(["app", "list"]) == 1
    assert "which configuration?" in capsys.readouterr().err


# Editing


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: { key: k, secret: s }", "a: { key: k, secret: NEW }"),
        ("a: {key: k, secret: 'it''s, [so]'}  # x", "a: {key: k, secret: NEW}  # x"),
        ("a:\n  secret: [ s, t ] # x\n  key: k\n", "a:\n  secret: NEW # x\n  key: k\n"),
        ("a:\n  secret:\n    - s\n    - t\n  key: k\n", "a:\n  secret:\n    NEW\n  key: k\n"),
        ("a:\n  key: k\n", "a:\n  secret: NEW\n  key: k\n"),
        ("a:\r\n  key: k\r\n", "a:\r\n  secret: NEW\r\n  key: k\r\n"),
        ("a: { key: k }", "a: { secret: NEW, key: k }"),
        ("# \U0001f600 é\na:\n  key: k\n  secret: \U0001f600\n", "# \U0001f600 é\na:\n  key: k\n  secret: NEW\n"),
        ("---\na:\n  key: k\n  secret: s\n", "---\na:\n  key: k\n  secret: NEW\n"),
    ],
)
def test_a_value_is_replaced_in_its_place(before: str, after: str) -> None:
    assert app_files.edited(before, "a", "secret", "NEW") == after


@pytest.mark.parametrize(
    "text",
    [
        "a: &x { key: k, secret: s }",
        "x: &x { key: k }\na: { <<: *x, secret: s }",
        "a: { key: k, secret: s }\nb: { key: l }",
        "b: { key: k, secret: s }",
        "a:\n  secret: |\n    s\n  key: k\n",
        "a:\n  secret:\n    - s # x\n    - t\n  key: k\n",
        "a:\n  secret:\n  key: k\n",
        "a: { key: k, secret: { b: c } }",
        "a:",
        "a: [",
        "a: { key: k, key: k, secret: s }",
        "[ a ]",
        "",
    ],
)
def test_a_text_that_cannot_be_changed_without_loss_is_left_alone(text: str) -> None:
    assert app_files.edited(text, "a", "secret", "NEW") is None
