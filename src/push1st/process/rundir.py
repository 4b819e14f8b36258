"""The folder of a running supervisor, by which `push1st reload` finds the supervisor.

Only the supervisor's user can open the folder, and its name is the process id. The folder contains the path of the
configuration file, the progress of reloads, and the socket of the embedded engine. The supervisor holds a lock on the folder
until the supervisor ends.

A supervisor that starts removes the folders of supervisors that were killed.

A search begins in the folder where this process would create its own, and continues in the folders of systemd's services. Root
finds the supervisors of all users, so a folder counts only if the process belongs to the folder's owner.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from push1st.errors import ConfigError

SERVICES = Path("/run")
"""the folder in which systemd creates those of `RuntimeDirectory=`"""
_NAME = "configuration"
_RELOADS = "reloads"
MAX_FILE_BYTES = 1 << 20
"""the maximum number of bytes that are read of a file, because another user may have written the file"""


class Reloads(msgspec.Struct, frozen=True):
    """The progress of a supervisor's reloads, which are numbered from 1.

    begun: the number of the last reload that has begun.
    accepted: the number of the last reload whose configuration a worker serves.
    ended: the number of the last reload that has ended.
    workers: the number of workers that run after the last reload that ended.
    problems: the reasons why that reload did not replace some workers.
    """

    begun: int = 0
    accepted: int = 0
    ended: int = 0
    workers: int = 0
    problems: tuple[str, ...] = ()


class RunDir:
    """Creates the folder of this process.

    config: the path of the configuration file, or None.
    Raises ConfigError if the folder cannot be created.
    """

    def __init__(self, config: str | None) -> None:
        base = _base()
        self.path = base / str(os.getpid())
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            _owner(base)
            with _locked(base):  # another supervisor may have created its folder, and not locked it yet
                for folder in base.iterdir():
                    if not _is_held(folder):
                        shutil.rmtree(folder, ignore_errors=True)
                self.path.mkdir(mode=0o700)
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.path / _NAME).write_text(_absolute(config))
            self.write(Reloads())
        except OSError as exc:
            text = exc.strerror or exc
            raise ConfigError(f"several workers need a folder in {base.parent} for their supervisor: {text}") from exc

    def write(self, reloads: Reloads) -> None:
        """Writes the progress of reloads. Raises OSError."""
        written = self.path / f"{_RELOADS}.new"
        written.write_bytes(msgspec.json.encode(reloads))
        written.rename(self.path / _RELOADS)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def running(config: str | None) -> dict[int, Path]:
    """Returns the processes of supervisors and their folders: this user's supervisors, for root those of all users.

    config: only supervisors with this configuration file; None: all.
    """
    found = {}
    for base in _bases():
        try:
            owner = _owner(base)
            for folder in filter(_is_held, sorted(base.iterdir())):
                if _is_process_of(owner, folder.name) and (
                    config is None or _read(folder / _NAME) == os.fsencode(_absolute(config))
                ):
                    found[int(folder.name)] = folder
        except OSError:  # no supervisor has run in the folder, or it has just ended
            pass
    return found


def reloads(folder: Path) -> Reloads | None:
    """Reads the progress of a supervisor's reloads; None if the supervisor has ended."""
    try:
        return msgspec.json.decode(_read(folder / _RELOADS), type=Reloads) if _is_held(folder) else None
    except (OSError, msgspec.DecodeError):
        return None


def _base() -> Path:
    """Returns the parent of this user's folders: in systemd's folder of the service (`RuntimeDirectory=`) or of temporary files.

    The folder is not in `XDG_RUNTIME_DIR`, because systemd removes that folder when the user logs out.
    """
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
    return Path(folder, f"push1st-{os.getuid()}")


def _bases() -> Iterator[Path]:
    """Yields the folders that may contain folders of supervisors."""
    yield _base()
    if "RUNTIME_DIRECTORY" not in os.environ:  # a process in a service finds only that service
        name = f"push1st-{os.getuid() or '*'}"
        yield from SERVICES.glob(f"*/{name}")
        yield from Path(tempfile.gettempdir()).glob(name)


def _owner(base: Path) -> int:
    """Returns the owner of the folder.

    Raises OSError if other users can access the folder, or if the owner is another user and this process is not root: in a place
    like /tmp any user may have created the folder.
    """
    state = base.lstat()
    named = base.name == f"push1st-{state.st_uid}" and os.getuid() in (state.st_uid, 0)
    if not named or state.st_mode & 0o077 or not stat.S_ISDIR(state.st_mode):
        raise PermissionError(f"{base} exists, and other users can open it or own it")
    return state.st_uid


def _is_process_of(user: int, process: str) -> bool:
    """Whether the process exists and belongs to the user, so that a signal reaches no other process."""
    try:
        return process.isdecimal() and os.stat(f"/proc/{process}").st_uid == user
    except OSError:  # the process has ended; or there is no /proc, and then the system rejects signals to other users' processes
        return process.isdecimal() and not Path("/proc/self").exists() and user == os.getuid()


def _read(file: Path) -> bytes:
    """Reads at most `MAX_FILE_BYTES` of a file; follows no link, and waits for no pipe. Raises OSError."""
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        return opened.read(MAX_FILE_BYTES)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; waits for it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
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
    return str(Path(config).absolute()) if config else ""
