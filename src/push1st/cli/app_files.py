"""Finds and changes the files of apps, for `push1st app`.

A change keeps every other character of a file, so comments stay. A file is changed only if it contains exactly one app, and if
the changed file differs in nothing but the key. Each change is atomic: other processes read the old file or the new one.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import yaml

from push1st.config.model import Config
from push1st.config.tables import ROOT
from push1st.config.tree import Value, parse, read
from push1st.errors import ClientError, ConfigError

_STYLES = (None, "'", '"')
"""the styles of scalars that are replaced: plain and quoted, but not blocks"""


class AppFile(msgspec.Struct, frozen=True):
    """The file that contains an app.

    path: the path without symbolic links.
    link: the path that the configuration contains, which may be a symbolic link.
    name: the path as users know it.
    place: the file and the line of the app.
    is_alone: whether the file contains no other app.
    """

    path: Path
    link: Path
    name: str
    place: str
    is_alone: bool


def files(config: Config) -> dict[str, AppFile]:
    """Returns the file of each app by the app's id. Raises ConfigError."""
    found: dict[str, AppFile] = {}
    for path in map(Path, config.files[1:]):
        name = os.path.relpath(path)
        sections = read(path, name, []).keys
        found.update((id, AppFile(path.resolve(), path, name, one.place, len(sections) == 1)) for id, one in sections.items())
    return found


def new_file(config: Config, id: str) -> Path:
    """Returns the path for the file of a new app. Raises ClientError if the server would not read a file with this path."""
    file = Path(config.files[0])
    credentials = read(file, file.name, []).at("credentials")
    patterns: Sequence[str] = ROOT["credentials"].read(credentials) if credentials and credentials.kind != "nothing" else ()
    for name in (f"apps/{id}.yml", *(id.join(pattern.split("*")) for pattern in patterns if pattern.count("*") == 1)):
        if any(_matches(name, pattern) for pattern in patterns):
            return file.parent / name
    raise ClientError(
        f"the server would not read a file for app {id!r}: {file.name} needs a pattern such as credentials: [ apps/*.yml ]"
    )


def _matches(name: str, pattern: str) -> bool:
    """Whether `glob` with a pattern finds a file. Neither the file nor its folder needs to exist."""
    parts, patterns = name.split("/"), pattern.split("/")
    if len(parts) != len(patterns):
        return False
    pairs = zip(parts, patterns, strict=True)
    return all(fnmatchcase(part, one) and part.startswith(".") <= one.startswith(".") for part, one in pairs)


def quoted(text: str) -> str:
    """Returns a text as a quoted scalar of YAML."""
    return json.dumps(text, ensure_ascii=False)


def listed(texts: Sequence[str]) -> str:
    """Returns texts as a list of YAML, without control characters; a single text is not put into a list."""
    return quoted(texts[0]) if len(texts) == 1 else f"[{', '.join(map(quoted, texts))}]"


def edited(text: str, id: str, key: str, value: str) -> str | None:
    """Returns the text of an app's file with another value of a key; None if the text has a form that this module cannot change.

    value: the new value as YAML.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) for event in yaml.parse(text)):
            return None
        document = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(document, yaml.MappingNode) or [name.value for name, _ in document.value] != [id]:
        return None
    app = document.value[0][1]
    if not isinstance(app, yaml.MappingNode) or not app.value:
        return None
    node = next((one for name, one in app.value if name.value == key), None)
    if node is None:
        found = _inserted(text, app, f"{key}: {value}")
    elif (span := _span(text, node)) is not None:
        found = text[: span[0]] + value + text[span[1] :]
    else:
        return None
    return found if _differs_only_in(text, found, id, key, value) else None


def _span(text: str, node: yaml.Node) -> tuple[int, int] | None:
    """Returns the start and the end of a value in the text; None if the value has comments, or is a text block."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode):
        return (start, end) if node.style in _STYLES and start < end else None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        return None
    if not node.flow_style:  # the end of a block sequence is the beginning of the next key
        end = node.value[-1].end_mark.index
    return None if "#" in text[start:end] else (start, end)


def _inserted(text: str, app: yaml.MappingNode, line: str) -> str:
    """Returns the text with a further key at the beginning of an app's section."""
    start = app.start_mark.index
    if app.flow_style:
        return f"{text[: start + 1]} {line},{text[start + 1 :]}"
    newline = "\r\n" if "\r\n" in text else "\n"
    return f"{text[:start]}{line}{newline}{' ' * app.start_mark.column}{text[start:]}"


def _differs_only_in(before: str, after: str, id: str, key: str, value: str) -> bool:
    """Whether a changed file has another value of one key of the app, and no other difference. Comments are not compared."""
    problems: list[str] = []
    try:
        old, new = (_plain(parse(text, "", problems)) for text in (before, after))
        wanted = _plain(parse(f"{key}: {value}", "", problems))[key]
    except (ConfigError, KeyError, TypeError):
        return False
    return not problems and {id: {**old[id], key: wanted}} == new


def _plain(value: Value) -> Any:
    """Returns a value as plain Python objects, without places."""
    if value.kind == "mapping":
        return {key: _plain(child) for key, child in value.keys.items()}
    if value.kind == "list":
        return [_plain(item) for item in value.items]
    return value.kind, value.text


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other `push1st app` changes files in a folder. Raises ClientError."""
    with _reporting(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def content(file: AppFile) -> str:
    """Returns the text of an app's file, with its line ends. Raises ClientError."""
    with _reporting(file.path):
        return file.path.read_bytes().decode("utf-8-sig")


def replace(file: AppFile, text: str) -> None:
    """Replaces the content of an app's file; mode and owner stay. Raises ClientError."""
    with _reporting(file.path):
        status = file.path.stat()
        with _temporary(file.path, text, status.st_mode & 0o7777, status) as name:
            os.replace(name, file.path)


def create(path: Path, text: str, like: Path) -> None:
    """Writes the file of a new app. Raises ClientError if the file exists or cannot be written.

    Only the owner can read the file. If root creates the file, the file gets the owner of the configuration file `like`, its
    group, and the group's right to read: the server must be able to read both files.
    """
    with _reporting(path):
        status = like.stat() if os.geteuid() == 0 else None
        if not path.parent.exists():
            path.parent.mkdir(mode=0o750)
            if status is not None:
                os.chown(path.parent, status.st_uid, status.st_gid)
        mode = 0o600 if status is None else 0o600 | status.st_mode & 0o040
        with locked(path.parent), _temporary(path, text, mode, status) as name:
            os.link(name, path)  # unlike `os.replace`, fails if the file exists
            os.unlink(name)


def remove(file: AppFile) -> None:
    """Deletes the file of an app. Raises ClientError.

    A symbolic link to the file is deleted, too: the server does not start if a link leads to no file.
    """
    with _reporting(file.path):
        if file.link.is_symlink():
            os.unlink(file.link)
        os.unlink(file.path)


@contextlib.contextmanager
def _temporary(path: Path, text: str, mode: int, owner: os.stat_result | None) -> Iterator[str]:
    """Writes a temporary file beside `path`, and deletes it if the caller fails. Patterns of `credentials` do not match it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield name
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ClientError(f"{os.path.relpath(path)}: cannot be read or written: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise ClientError(f"{os.path.relpath(path)}: is not UTF-8") from None
