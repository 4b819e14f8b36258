"""The run folder of a server. Commands such as `push1st reload` find a running server by this folder.

Only the operating system's user that runs the server can open the run folder. The name of the folder is the process id of the
server: of its supervisor, or of its single worker. The folder contains the path of the configuration file, the control socket
(`controlsocket`), and the socket of the embedded engine. The process holds a lock on the folder until the process ends.

At its start, a server removes the run folders of killed servers.

`running` first searches the parent of this user's run folders, and then the folders of systemd's services. For root, `running`
searches the folders of all users. A run folder is valid only if the server's process runs as the folder's owner.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from push1st.errors import ConfigError

SERVICES = Path("/run")
"""the folder in which systemd creates the folders of `RuntimeDirectory=`"""
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - the server may have another TMPDIR than the command
_NAME = "configuration"
MAX_FILE_BYTES = 1 << 20
"""the maximum number of bytes that this module reads from a file, because another user may have written the file"""


class RunDir:
    """Creates the run folder of this process.

    config: the path of the configuration file; None if the server has no configuration file.
    Raises ConfigError if the folder cannot be created.
    """

    def __init__(self, config: str | None) -> None:
        base = _base()
        self.path = base / str(os.getpid())
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            _owner(base)
            with _locked(base):  # another server may have created a folder, but not locked the folder yet
                for folder in base.iterdir():
                    if not _is_held(folder):
                        shutil.rmtree(folder, ignore_errors=True)
                self.path.mkdir(mode=0o700)
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.path / _NAME).write_text(_absolute(config))
        except OSError as exc:
            text = exc.strerror or exc
            raise ConfigError(f"the server needs a folder in {base.parent} for its control socket: {text}") from exc

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def running(config: str | None) -> dict[int, Path]:
    """Returns the run folders of all running servers, by process id. For root, this includes other users' servers.

    config: the configuration file of the servers to return; None: all servers are returned.
    """
    found = {}
    for base in _bases():
        try:
            owner = _owner(base)
            for folder in filter(_is_held, sorted(base.iterdir())):
                if _is_process_of(owner, folder.name) and (config is None or _is_same(_read(folder / _NAME), config)):
                    found[int(folder.name)] = folder
        except OSError:  # no server has run in this folder, or the server has just ended
            pass
    return found


def described(found: Mapping[int, Path]) -> str:
    """Returns a text that names servers by process id and configuration file. found: the result of `running`."""

    def file(folder: Path) -> str:
        try:
            return os.fsdecode(_read(folder / _NAME))
        except OSError:  # a server without a file, or a server that has just ended
            return ""

    return ", ".join(f"{process} ({file(folder) or 'no file'})" for process, folder in found.items())


def _base() -> Path:
    """Returns the parent folder of this user's run folders, in systemd's `RuntimeDirectory=` or else in the temporary folder.

    The folder is not in `XDG_RUNTIME_DIR`, because systemd removes `XDG_RUNTIME_DIR` when the user logs out.
    """
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
    return Path(folder, f"push1st-{os.getuid()}")


def _bases() -> Iterator[Path]:
    """Yields the folders that may contain run folders of servers."""
    yield _base()
    if "RUNTIME_DIRECTORY" not in os.environ:  # a process of a systemd service finds only the server of this service
        name = f"push1st-{os.getuid() or '*'}"
        yield from SERVICES.glob(f"*/{name}")
        for folder in dict.fromkeys((tempfile.gettempdir(), *TEMPORARY)):
            yield from Path(folder).glob(name)
            yield from Path(folder).glob(f"systemd-private-*/tmp/{name}")  # PrivateTmp= of a service, which only root can read


def _owner(base: Path) -> int:
    """Returns the user id of the folder's owner.

    Raises OSError if other users can access the folder, because in a place like /tmp any user may have created the folder.
    Also raises OSError if the owner is another user, unless this process runs as root.
    """
    state = base.lstat()
    named = base.name == f"push1st-{state.st_uid}" and os.getuid() in (state.st_uid, 0)
    if not named or state.st_mode & 0o077 or not stat.S_ISDIR(state.st_mode):
        raise PermissionError(f"{base} exists, and other users can open it or own it")
    return state.st_uid


def _is_process_of(user: int, process: str) -> bool:
    """Returns whether the process exists and belongs to the user, so that SIGHUP reaches no other process."""
    try:
        return process.isdecimal() and os.stat(f"/proc/{process}").st_uid == user
    except OSError:  # the process has ended, or there is no /proc; without /proc, only this user's folders are valid
        return process.isdecimal() and not Path("/proc/self").exists() and user == os.getuid()


def _read(file: Path) -> bytes:
    """Reads at most `MAX_FILE_BYTES` of a file; neither follows a symbolic link nor waits for a named pipe. Raises OSError."""
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        return opened.read(MAX_FILE_BYTES)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for the lock of a folder, and holds the lock."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_held(folder: Path) -> bool:
    """Returns whether a process holds the lock of a folder."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _absolute(config: str | None) -> str:
    return os.path.abspath(config) if config else ""


def _is_same(known: bytes, config: str) -> bool:
    """Returns whether the absolute path `known` and a path name the same file."""
    return known == os.fsencode(_absolute(config)) or os.path.realpath(known) == os.fsencode(os.path.realpath(config))
