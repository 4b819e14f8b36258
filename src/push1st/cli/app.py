"""`push1st app`: lists, adds, changes and removes the apps in the files of a configuration.

A new secret is printed once, when it is made; no command prints an existing secret. A running server applies a change with
`push1st reload`.
"""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from push1st.cli import app_files, purge, reload
from push1st.cli.app_files import AppFile
from push1st.cli.arguments import Arguments
from push1st.config.load import load
from push1st.config.model import MAX_SECRETS, AppConfig, Config
from push1st.config.origins import note_on
from push1st.config.readers import identifier
from push1st.config.tables import fill_app
from push1st.config.tree import Value
from push1st.errors import ClientError, ConfigError
from push1st.printable import printable
from push1st.process import rundir

SECRET_BYTES = 32
"""the number of random bytes of a new secret, which is written in hex"""
KEY_BYTES = 10
"""the number of random bytes of a new key, which is written in hex"""


def run_list(options: Arguments) -> int:
    """Prints all apps. Raises ConfigError."""
    config = _config(options)
    files = app_files.files(config)
    found = [_described(app, files[app.id]) for app in config.apps]
    if options.json:
        print(json.dumps(found))
    elif not found:
        print(f"{config.files[0]} has no app: `push1st app add ID` adds one", file=sys.stderr)
    for one in found if not options.json else ():
        state = "" if one["enable"] else "  (disabled)"
        print(printable(f"{one['id']}  key {one['key']}  {_secrets_text(one['secrets'])}  {one['file']}{state}"))
    return 0


def run_show(options: Arguments) -> int:
    """Prints an app without its secrets. Raises ConfigError."""
    config = _config(options)
    found = _described(app := _app(config, options.id), app_files.files(config)[app.id])
    if options.json:
        print(json.dumps(found))
        return 0
    found["secrets"] = _secrets_text(found["secrets"])
    for name, value in found.items():
        text = ", ".join(value) if isinstance(value, list) else "yes" if value is True else "no" if value is False else value
        print(printable(f"{name:<9} {text}"))
    return 0


def run_add(options: Arguments) -> int:
    """Creates the file of a new app, and prints its key and secret. Raises ConfigError and ClientError."""
    config, id = _config(options), options.id
    section = _new_section(options)
    if any(app.id == id for app in config.apps):
        raise ClientError(f"app {id!r} exists: see `push1st app show {id}`, or choose another id")
    path = app_files.new_file(config, id)
    key, secret = secrets.token_hex(KEY_BYTES), secrets.token_hex(SECRET_BYTES)
    lines = [f"{app_files.quoted(id)}:"]
    for name, value in (("name", options.name), ("key", key), ("secret", secret)):
        lines += [f"  {name}: {app_files.quoted(value)}"] if value else []
    for name, values in (("origins", options.origin), ("channels", options.channels)):
        lines += [f"  {name}: [{', '.join(map(app_files.quoted, values))}]"] if values else []
    text = "\n".join([*lines, ""])
    for origin in fill_app(AppConfig(id=id, key=key, secret=secret), section).origins:  # checks the options
        if note := note_on(origin):
            print(printable(f"note: --origin: {note}"), file=sys.stderr)
    app_files.create(path, text, Path(config.files[0]))
    _print(options, {"id": id, "key": key, "secret": secret, "file": os.path.relpath(path)}, "created")
    return _apply(options)


def _new_section(options: Arguments) -> Value:
    """Returns the section of a new app, whose keys are those of the options, for errors. Raises ClientError."""
    command = "push1st app add"
    try:
        identifier(Value("text", command, "ID", options.id))
    except ConfigError as exc:
        raise ClientError(str(exc).replace("found text", f"found {options.id[:80]!r}", 1)) from None
    keys = {"name": Value("text", command, "--name", options.name)} if options.name else {}
    for name, option, texts in (("origins", "--origin", options.origin), ("channels", "--channels", options.channels)):
        if texts:
            items = tuple(Value("text", command, option, one) for one in texts)
            keys[name] = Value("list", command, option, items=items)
    return Value("mapping", command, options.id, keys=keys)


def run_rotate(options: Arguments) -> int:
    """Adds a new first secret, which signs; the older secrets still verify. Raises ConfigError and ClientError."""
    config = _config(options)
    app = _app(config, options.id)
    if not app.secret:
        raise ClientError(f"app {app.id} has no secret to rotate: write one into its file")
    if len(app.secrets) >= MAX_SECRETS:
        raise ClientError(
            f"app {app.id} has {MAX_SECRETS} secrets already: remove the older ones with `push1st app retire {app.id}`"
        )
    new = secrets.token_hex(SECRET_BYTES)
    shown = f"[{app_files.quoted(new)}, {', '.join(['the present secret', 'the older secret'][: len(app.secrets)])}]"
    file = _change(config, app, "secret", app_files.listed([new, *app.secrets]), shown)
    _print(options, {"id": app.id, "secret": new, "secrets": len(app.secrets) + 1, "file": file.name}, "rotated")
    if not options.json:
        print("after the reload, the new secret signs webhooks and tokens, and the older secrets still verify", file=sys.stderr)
    return _apply(options)


def run_retire(options: Arguments) -> int:
    """Removes all secrets of an app except the first. Raises ConfigError and ClientError."""
    config = _config(options)
    app = _app(config, options.id)
    if not app.older_secrets:
        raise ClientError(f"app {app.id} has no older secret to retire: `push1st app rotate {app.id}` makes a new one")
    file = _change(config, app, "secret", app_files.listed([app.secret]), "only the first secret of its list")
    _print(options, {"id": app.id, "retired": len(app.older_secrets), "file": file.name}, "retired")
    return _apply(options)


def run_enable(options: Arguments) -> int:
    """Enables or disables an app. Raises ConfigError and ClientError."""
    config = _config(options)
    app = _app(config, options.id)
    file = app_files.files(config)[app.id]
    word = "enabled" if options.enable else "disabled"
    is_changed = app.enable != options.enable
    if is_changed:
        value = "true" if options.enable else "false"
        file = _change(config, app, "enable", value, value)
    _print(options, {"id": app.id, "enable": options.enable, "file": file.name}, word if is_changed else f"already {word}:")
    return _apply(options) if is_changed or options.reload else 0


def run_remove(options: Arguments) -> int:
    """Deletes the file of an app, and with `--purge` its data in the broker. Raises ConfigError and ClientError."""
    config = _config(options)
    if not options.purge or any(app.id == options.id for app in config.apps):
        app = _app(config, options.id)
        file = app_files.files(config)[app.id]
        if not file.is_alone:
            raise ClientError(
                f"{file.name} has other apps too, so it is not changed: delete the section {app.id} at {file.place}"
            )
        if not options.yes:
            raise ClientError(f"this deletes {file.name} with the secret of app {app.id}: repeat the command with --yes")
        if app.enable and len(config.apps) == 1:
            raise ClientError(
                f"app {app.id} is the only app, and a reload rejects a configuration without apps: add another app first, or "
                f"disable this app with `push1st app disable {app.id} --reload`, and then remove it"
            )
        app_files.remove(file)
        _print(options, {"id": app.id, "file": file.name}, "removed")
    elif not options.yes:
        raise ClientError(f"this deletes the stored data of app {options.id} in the broker: repeat the command with --yes")
    if not options.purge:
        return _apply(options)
    options.reload = bool(rundir.running(options.config))  # clients must leave before the data are deleted
    return (options.reload and _apply(options)) or purge.run(options)


def _config(options: Arguments) -> Config:
    if not options.config:
        raise ClientError(
            "which configuration? Give it with -c FILE or by PUSH1ST_CONFIG. An app of the environment has no file: "
            'to rotate its secret, set PUSH1ST_APP_SECRET="[NEW, OLD]"'
        )
    return load(Path(options.config), {})  # without the environment, whose secrets must not get into the files


def _app(config: Config, id: str) -> AppConfig:
    found = next((app for app in config.apps if app.id == id), None)
    if found is None:
        names = ", ".join(app.id for app in config.apps[:20]) or "none"
        raise ClientError(f"there is no app {id!r} in {config.files[0]}, allowed: {names}")
    return found


def _change(config: Config, app: AppConfig, key: str, value: str, shown: str) -> AppFile:
    """Changes a key of an app in its file. Raises ClientError with the line to write if the file cannot be changed.

    value: the new value as YAML. shown: the value for the error, without existing secrets.
    """
    file = app_files.files(config)[app.id]
    with app_files.locked(file.path.parent):
        text = app_files.content(file)
        if app not in load(Path(config.files[0]), {}).apps:
            raise ClientError(f"{file.name} has just changed: repeat the command")
        changed = app_files.edited(text, app.id, key, value) if file.is_alone else None
        if changed is None:
            why = "has a form that this command cannot change" if file.is_alone else "has other apps too"
            raise ClientError(
                f"{file.name} {why}, so it is not changed. Write at {file.place}, into the section {app.id}: {key}: {shown}"
            )
        app_files.replace(file, changed)
    if os.environ.get(variable := f"PUSH1ST_APP_{key.upper()}"):
        print(f"note: a server with the variable {variable}, which is set here, ignores this change", file=sys.stderr)
    return file


def _described(app: AppConfig, file: AppFile) -> dict[str, Any]:
    """Returns the properties of an app that may be shown. `secrets`: the number of bytes of each secret."""
    return {
        "id": app.id,
        "name": app.name,
        "key": app.key,
        "enable": app.enable,
        "secrets": [len(secret.encode()) for secret in app.secrets],
        "channels": sorted(app.channels),
        "origins": list(app.origins),
        "file": file.place,
    }


def _secrets_text(sizes: Sequence[int]) -> str:
    return ", ".join(f"secret of {size} bytes" for size in sizes) or "no secret"


def _print(options: Arguments, result: dict[str, Any], word: str) -> None:
    """Prints the result of a change. A new secret appears only here."""
    if options.json:
        print(json.dumps(result))
        return
    print(printable(f"{word} {result['id']} in {result['file']}"))
    for name in ("key", "secret"):
        if name in result:
            print(f"{name:<6} {result[name]}")
    if "secret" in result:
        print("this secret is not shown again", file=sys.stderr)


def _apply(options: Arguments) -> int:
    """Reloads the server if the user wants it; otherwise prints the command. Returns the exit code of the command."""
    sys.stdout.flush()
    if options.reload:
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            return reload.run(options)
    print(f"`push1st reload -c {options.config}` applies the change to a running server", file=sys.stderr)
    return 0
