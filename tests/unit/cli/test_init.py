"""The first configuration, which `push1st init` writes."""

import stat
from pathlib import Path

import pytest

from push1st.cli import main
from push1st.config.load import load

Captured = pytest.CaptureFixture[str]


def test_the_first_configuration_loads_without_a_warning(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    config = load(tmp_path / "server.yml", {})
    assert config.warnings == ()
    (app,) = config.apps
    assert (app.id, app.enable) == ("app", True)
    assert len(app.secret) == 43
    assert len(app.key) == 20
    assert app.channels >= {"public", "private", "presence"}


def test_only_the_owner_may_read_the_secret(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    assert stat.S_IMODE((tmp_path / "apps" / "app.yml").stat().st_mode) == 0o600


def test_each_configuration_has_another_key_and_secret(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["init", str(tmp_path / name)]) == 0
    (a,), (b,) = (load(tmp_path / name / "server.yml", {}).apps for name in ("a", "b"))
    assert a.key != b.key
    assert a.secret != b.secret


def test_the_next_commands_are_printed_without_the_secret(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "my folder"
    assert main(["init", str(folder), "--app", "shop"]) == 0
    out = capsys.readouterr().out
    (app,) = load(folder / "server.yml", {}).apps
    assert app.id == "shop"
    for command in ("check", "serve", "subscribe", "publish"):
        assert f"{command} -c '{folder}/server.yml'" in out
    assert app.key in out
    assert app.secret not in out


@pytest.mark.parametrize("present", ["server.yml", "apps/app.yml"])
def test_no_file_is_overwritten_and_none_is_added(tmp_path: Path, capsys: Captured, present: str) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / present).write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert f"{tmp_path / present} exists" in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["mine"]


def test_advice_fits_the_file_that_exists(tmp_path: Path, capsys: Captured) -> None:
    assert main(["init", str(tmp_path)]) == 0
    assert main(["init", str(tmp_path), "--app", "other"]) == 1
    advice = f"`push1st app add ID -c {tmp_path}/server.yml` adds an app to it; or name another folder\n"
    assert capsys.readouterr().err.endswith(advice)
    (tmp_path / "server.yml").unlink()
    assert main(["init", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("name another folder, or another --app\n")


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "server.yml").symlink_to(tmp_path / "elsewhere.yml")
    assert main(["init", str(tmp_path)]) == 1
    assert not (tmp_path / "elsewhere.yml").exists()


def test_apps_that_are_there_must_fit_the_new_app(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "old.yml").write_text("app: { key: k, secret: s }")
    assert main(["init", str(tmp_path)]) == 1
    assert "found a second app of this id" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["old.yml"]


@pytest.mark.parametrize("id", ["", "..", "a/b", "-a", "a b", "ä", "a" * 65])
def test_an_id_that_is_no_name_of_a_file_is_rejected(tmp_path: Path, capsys: Captured, id: str) -> None:
    assert main(["init", str(tmp_path), f"--app={id}"]) == 1
    assert "--app: found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("id", ["null", "true", "1e3", "2026-11-28", "0x1f", "a.b", "a" * 64])
def test_an_id_that_yaml_could_read_as_another_type_stays_text(tmp_path: Path, id: str) -> None:
    assert main(["init", str(tmp_path), f"--app={id}"]) == 0
    assert [app.id for app in load(tmp_path / "server.yml", {}).apps] == [id]


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "folder")]) == 1
    assert "cannot write" in capsys.readouterr().err
