"""Where a running supervisor is found: a folder only its user can enter, called by its process id, with the name of its
configuration in it, what became of its reloads, and the socket of the embedded engine. It holds a lock on the folder,
which ends with it.

Folders of supervisors that did not end by themselves are removed by the next one that starts.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from push1st.errors import ConfigError

_NAME = "configuration"
_RELOADS = "reloads"


class Reloads(msgspec.Struct, frozen=True):
    """How many a supervisor has begun and ended; of the last one that ended: how many workers run, and what was wrong."""

    begun: int = 0
    ended: int = 0
    workers: int = 0
    problems: tuple[str, ...] = ()


class RunDir:
    """config: the configuration file's path, or None. Raises ConfigError when the folder cannot be had."""

    def __init__(self, config: str | None) -> None:
        base = _base()
        self.path = base / str(os.getpid())
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            _check(base)
            with _locked(base):  # one that starts just now has no lock yet
                for left in base.iterdir():
                    if not _is_held(left):
                        shutil.rmtree(left, ignore_errors=True)
                self.path.mkdir(mode=0o700)
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.path / _NAME).write_text(_absolute(config))
            self.note(Reloads())
        except OSError as wrong:
            text = wrong.strerror or wrong
            raise ConfigError(f"several workers need a folder in {base.parent} for their supervisor: {text}") from wrong

    def note(self, reloads: Reloads) -> None:
        """Says what became of reloads. Raises OSError."""
        written = self.path / f"{_RELOADS}.new"
        written.write_bytes(msgspec.json.encode(reloads))
        written.rename(self.path / _RELOADS)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def running(config: str | None) -> list[int]:
    """The processes of this user's supervisors; only those with this configuration file, if one is given."""
    base = _base()
    try:
        _check(base)
        held = filter(_is_held, sorted(base.iterdir()))
        return [int(one.name) for one in held if config is None or (one / _NAME).read_text() == _absolute(config)]
    except OSError:  # none has ever run, or one has just ended
        return []


def reloads(process: int) -> Reloads | None:
    """What became of a supervisor's reloads; None when it runs no more."""
    folder = _base() / str(process)
    try:
        return msgspec.json.decode((folder / _RELOADS).read_bytes(), type=Reloads) if _is_held(folder) else None
    except (OSError, msgspec.DecodeError):
        return None


def _base() -> Path:
    """In the folder systemd gives a service (`RuntimeDirectory=`), or among temporary files. That of a login ends with it."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
    return Path(folder, f"push1st-{os.getuid()}")


def _check(base: Path) -> None:
    """Raises OSError unless the folder is ours alone: where everyone may make folders, somebody else may have made it."""
    state = base.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or base.is_symlink():
        raise PermissionError(f"{base} is there, and is not this user's alone")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY)
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
