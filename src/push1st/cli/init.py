"""`push1st init`: writes a first configuration, `server.yml`, and an app with a random key and secret, `apps/ID.yml`.

The command overwrites no file. If it cannot write both files, it leaves neither of them behind.
"""

import contextlib
import os
import re
import secrets
import shlex
from pathlib import Path

from push1st.cli.arguments import Arguments
from push1st.cli.configuration import program
from push1st.config.load import load
from push1st.errors import ConfigError

SECRET_MODE = 0o600
"""the permissions of a file with a secret: only its owner may read the file"""
_FILE_MODE = 0o666
_APP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
"""ids that are also the name of a file, and need no quotes in YAML"""

SERVER = """\
# Check each change with: push1st check -c server.yml
server:
  listen: tcp://*:6001               # clients of all machines, and signed API calls
api:
  listen: tcp://127.0.0.1:6002       # unsigned API calls, from this machine only
credentials: [ apps/*.yml ]          # the files with the apps
"""
APP = """\
{id}:
  key: "{key}"            # public: clients connect with the key
  secret: "{secret}"   # only for the server and your backend
  channels: [ public, private, presence ]
  # The web pages that may connect; without this list, all pages may.
  # origins: [ https://shop.example ]
"""


def run(options: Arguments) -> int:
    """Writes the files and prints the next commands. Raises ConfigError."""
    id, folder = options.app, Path(options.folder)
    if not _APP_ID.match(id):
        allowed = "1 to 64 letters, digits, dots, dashes or underscores, with a letter or digit first"
        raise ConfigError(f"--app: found {id[:80]!r}, allowed: {allowed}")
    server, app = folder / "server.yml", folder / "apps" / f"{id}.yml"
    if os.path.lexists(server):
        more = f"`{program()} app add ID -c {shlex.quote(str(server))}` adds an app to it"
        raise ConfigError(f"{server} exists, and push1st init overwrites nothing: {more}; or name another folder")
    key = secrets.token_hex(10)
    text = APP.format(id=id, key=key, secret=secrets.token_urlsafe(32))
    _create([(app, text, SECRET_MODE), (server, SERVER, _FILE_MODE)])
    print(f"created {server}")
    print(f"created {app}: the app {id} with the key {key}; the secret is only in this file, which only its owner may read")
    command, file = program(), shlex.quote(str(server))
    print(f"""
Next, start the server:

  {command} check -c {file}
  {command} serve -c {file}

and in two other terminals, see an event arrive:

  {command} subscribe -c {file} my-channel
  {command} publish -c {file} my-channel greeting hello""")
    return 0


def _create(files: list[tuple[Path, str, int]]) -> None:
    """Creates each file with its text and permissions. The last file is the configuration.

    Raises ConfigError if a file exists already, cannot be written, or makes a configuration that is not valid together with
    other files of the folder. Then no file of `files` remains.
    """
    created: list[Path] = []
    try:
        for path, text, mode in files:
            _write(path, text, mode, created)
        load(files[-1][0], {})
    except BaseException:
        for path in created:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _write(path: Path, text: str, mode: int, created: list[Path]) -> None:
    """Creates a file and its folder, and adds the file to `created`. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "w") as file:
            created.append(path)
            file.write(text)
    except OSError as exc:
        if isinstance(exc, FileExistsError) and os.path.lexists(path):
            raise ConfigError(
                f"{path} exists, and push1st init overwrites nothing: name another folder, or another --app"
            ) from None
        raise ConfigError(f"cannot write {path}: {exc.strerror}") from None
