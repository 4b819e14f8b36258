"""The certificates of a worker's listeners: loads them, and replaces them while the worker runs.

Once a minute the worker compares the files with the loaded ones, through symbolic links. If files differ, the worker waits until
they stay the same for a second: a program that renews a certificate replaces the key and the certificate one after the other.
New files are loaded into a new TLS context first, so files that do not fit change nothing (decision 0028).
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from push1st import logs
from push1st.config.model import Config, Ssl
from push1st.config.mqtt import MqttSsl
from push1st.errors import ConfigError
from push1st.metrics import Metrics
from push1st.process.sockets import ROLES, Role, key_of_file, tls_settings
from push1st.process.tls import NOTE, CertificateFacts, TlsFileError, day, facts_of, require_valid, self_signed
from push1st.process.tlscontext import TlsContext, TlsKeys, make_context, make_keys
from push1st.transports.tls import Decryption

CHECK_SECONDS = 60
"""the time between two comparisons of the files"""

FileState = tuple[int, int, int, int] | None
"""device, inode, time of the last change (also of owner and permissions), and size of a file; None without the file"""

log = logs.get("push1st.server")


class Loaded(msgspec.Struct, frozen=True):
    """The loaded files of a listener.

    files: the states of the files when they were loaded; empty for a self-signed certificate of this process.
    facts: the content of the certificate; None if it is not known.
    """

    settings: Ssl | MqttSsl
    files: tuple[FileState, ...]
    keys: TlsKeys
    facts: CertificateFacts | None


class Certificates:
    """The TLS contexts of the listeners of a worker, by role.

    refuse: a function that counts a handshake that is rejected because no file descriptor is left.
    fail: a function that counts and logs a failed handshake.
    wall: a function that returns the wall clock in nanoseconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        decryption: Decryption,
        refuse: Callable[[], None],
        fail: Callable[[str], None],
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._metrics = metrics
        self._decryption = decryption
        self._refuse = refuse
        self._fail = fail
        self._wall = wall
        self._loaded: dict[Role, Loaded] = {}
        self._seen: dict[Role, tuple[FileState, ...]] = {}
        """the states of files that differ from the loaded ones, as the last comparison found them"""
        self._refused: dict[Role, tuple[FileState, ...]] = {}
        """the states of files whose refusal is logged"""
        self._seconds = 0
        self.contexts: dict[Role, TlsContext] = {}

    def open(self, config: Config, *, must_be_valid: bool = False) -> None:
        """Loads the certificates of all listeners. Raises ConfigError.

        A server starts with a certificate that has expired or is not valid yet, and logs an error: other listeners serve their
        clients, and the worker uses a renewed certificate within a minute.

        must_be_valid: whether such a certificate is an error, as in a reload that replaces workers.
        """
        with _own_certificate() as placed:
            for role, settings in _settings(config).items():
                with _located(config, role):
                    loaded = self._load(settings, placed(settings), asks=True)
                    try:
                        require_valid(settings.cert, loaded.facts, self._seconds_now())
                    except TlsFileError as exc:
                        if must_be_valid:
                            raise
                        log.error("certificate is not valid, clients reject it", listener=role, reason=str(exc))
                self.contexts[role] = make_context(loaded.keys, self._refuse, self._decryption)
                self._use(role, loaded)

    def prepare(self, config: Config) -> Mapping[Role, Loaded]:
        """Loads the changed files of a configuration with the same listeners. Raises ConfigError."""
        prepared: dict[Role, Loaded] = {}
        with _own_certificate() as placed:
            for role, settings in _settings(config).items():
                if settings != self._loaded[role].settings or _states(settings) != self._loaded[role].files:
                    with _located(config, role):
                        prepared[role] = self._checked(role, settings, placed(settings))
        return prepared

    def apply(self, prepared: Mapping[Role, Loaded]) -> list[str]:
        """Uses loaded files for new connections. Returns a line for each listener, for people."""
        return [self._replace(role, loaded) for role, loaded in prepared.items()]

    def tick(self) -> None:
        """Compares the files with the loaded ones when it is time. Called once a second."""
        self._seconds += 1
        if self._seconds % CHECK_SECONDS and not self._seen:
            return
        seen, self._seen = self._seen, {}
        for role, loaded in self._loaded.items():
            files = _states(loaded.settings)
            if files == loaded.files:
                self._metrics.refused_certificates.pop(role, None)
                continue
            if seen.get(role) != files:
                self._seen[role] = files
                continue
            try:
                renewed = self._checked(role, loaded.settings, loaded.settings)
            except TlsFileError as exc:  # tried again in a minute: the certificate may not be valid yet
                self._metrics.refused_certificates[role] = str(exc)
                if self._refused.get(role) != files:
                    self._refused[role] = files
                    self._metrics.reloads.results["refused"] += 1
                    log.error("certificate refused, the old one stays", listener=role, reason=str(exc))
            else:
                self._metrics.reloads.results["renewed"] += 1
                self._replace(role, renewed)

    def _checked(self, role: Role, settings: Ssl | MqttSsl, placed: Ssl | MqttSsl) -> Loaded:
        """Loads files while the server runs. Raises TlsFileError, also for a certificate that is not valid now."""
        loaded = self._load(settings, placed, asks=False)
        facts = loaded.facts
        require_valid(settings.cert, facts, self._seconds_now())
        before = self._loaded[role].facts
        if before is not None and facts is not None and (lost := before.names - facts.names):
            log.warning("the new certificate lacks names", listener=role, names=sorted(lost))
        return loaded

    def _load(self, settings: Ssl | MqttSsl, placed: Ssl | MqttSsl, *, asks: bool) -> Loaded:
        """Loads the files of a listener. Raises TlsFileError.

        placed: the settings with the files of a self-signed certificate.
        """
        files = _states(settings)  # before the files are read, so that a later change is found
        return Loaded(settings, files, make_keys(placed, self._fail, asks=asks), facts_of(placed.cert))

    def _replace(self, role: Role, loaded: Loaded) -> str:
        self.contexts[role].keys = loaded.keys
        self._use(role, loaded)
        until = "" if loaded.facts is None else day(loaded.facts.expires)
        log.info("certificate renewed", listener=role, valid_until=until)
        return f"{role}: new certificate" + (f", valid until {until}" if until else "")

    def _seconds_now(self) -> float:
        return self._wall() / 1_000_000_000

    def _use(self, role: Role, loaded: Loaded) -> None:
        self._loaded[role] = loaded
        self._refused.pop(role, None)
        self._metrics.refused_certificates.pop(role, None)
        if loaded.facts is not None:
            self._metrics.certificates[role] = loaded.facts.expires


@contextlib.contextmanager
def _own_certificate() -> Iterator[Callable[[Ssl | MqttSsl], Ssl | MqttSsl]]:
    """Returns a function that adds the files of a self-signed certificate to settings without files. Removes the files."""
    own: tuple[str, str] | None = None

    def placed(settings: Ssl | MqttSsl) -> Ssl | MqttSsl:
        nonlocal own
        if settings.cert:
            return settings
        if own is None:
            own = self_signed()
            log.warning(NOTE)
        return msgspec.structs.replace(settings, key=own[0], cert=own[1])

    try:
        yield placed
    finally:
        for path in own or ():
            os.unlink(path)


def _settings(config: Config) -> dict[Role, Ssl | MqttSsl]:
    """Returns the settings of the listeners that use TLS."""
    return {role: settings for role in ROLES if (settings := tls_settings(config, role)) is not None}


def _states(settings: Ssl | MqttSsl) -> tuple[FileState, ...]:
    """Returns the state of each file of a listener. For a symbolic link, this is the state of the target of the link."""
    return tuple(_state(path) for path in (settings.cert, settings.key, getattr(settings, "ca", "")) if path)


def _state(path: str) -> FileState:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size


@contextlib.contextmanager
def _located(config: Config, role: Role) -> Iterator[None]:
    """Adds the key of a file, and its place in the configuration, to the error about this file."""
    try:
        yield
    except TlsFileError as exc:
        raise ConfigError(f"{key_of_file(config, role, exc.key)}: {exc}") from exc
