"""Checks for `push1st check` whether the operating system's current user can run `serve` on this machine.

The checks change nothing: they create no folder, and bind an address only for a moment. The result depends on the machine
and on the user, so a deployment runs the checks as the service's user (`ExecStartPre=` of deploy/push1st.service).
"""

import errno
import grp
import os
import pwd
import shlex
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from push1st.config.model import Config, Ssl
from push1st.config.mqtt import MqttSsl
from push1st.config.settings import located_key
from push1st.config.tables import SECONDS_A_DAY
from push1st.errors import ConfigError
from push1st.process import tls
from push1st.process.sockets import ROLES, AddressInUse, addresses, bind, close, key_of_file, tls_settings

Level = Literal["error", "note"]

_OF_THE_KERNEL = ("/proc", "/sys")
"""file systems in which no user can create a file, whatever the permissions of the folders"""
DENIED = "Permission denied"
"""the reason of an error that other users may not have"""
SHOWN = 3
"""the maximum number of files that a note lists"""


def obstacle(folder: Path) -> str:
    """Returns the reason why this user cannot create files in a folder, or "". The folder need not exist yet."""
    existing = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if any(os.path.ismount(one) and existing.stat().st_dev == os.stat(one).st_dev for one in _OF_THE_KERNEL):
        return f"the kernel permits no files in {existing}"
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    reason = "Read-only file system" if os.statvfs(existing).f_flag & os.ST_RDONLY else DENIED
    return reason if existing == folder else f"{reason} in {existing}"


def mistakes(config: Config, now: float | None = None) -> list[str]:
    """Returns a line for each problem that prevents the start of the server, or because of which clients reject the server.

    now: the time in seconds on the wall clock; None: the present time.
    """
    found = *_listeners(config), *_certificates(config, time.time() if now is None else now)
    unusable = [line for level, line in found if level == "error"]
    if not config.hooks.folder or not (reason := obstacle(Path(config.hooks.folder))):
        return unusable
    allowed = (
        "a folder that the server's user may write to; under systemd below /var/lib/NAME, with StateDirectory=NAME in the unit"
    )
    where = located_key(config, "hooks.folder")
    return [*unusable, f"{where}: cannot keep hook events in {config.hooks.folder}: {reason}, allowed: {allowed}"]


def notes(config: Config, now: float | None = None) -> Iterator[str]:
    """Yields a line for each problem that depends on the user or the machine, and for each certificate that expires soon.

    For root, it also yields a line about files that other users cannot read. now: see `mistakes`.
    """
    found = *_listeners(config), *_certificates(config, time.time() if now is None else now)
    yield from (line for level, line in found if level == "note")
    for file in config.files:
        if os.path.exists(file) and os.stat(file).st_mode & stat.S_IWOTH:
            yield f"every user of this machine may change {file} ({_mode(Path(file))}): chmod o-w {shlex.quote(file)}"
    if os.geteuid() == 0:
        yield from _not_world_readable(config)


def _listeners(config: Config) -> Iterator[tuple[Level, str]]:
    """Yields an error for each address on which no user of this machine can listen, and a note if only this user cannot."""
    for role in ROLES:
        for address in addresses(config, role):
            where = located_key(config, f"{role}.listen")
            if address.scheme == "unix":
                file = Path(address.path)
                reason = obstacle(file.parent)
                if not reason and file.exists() and not file.is_socket():
                    reason = "a file that is no socket is in the way"
                if reason:
                    yield "note" if reason.startswith(DENIED) else "error", f"{where}: cannot listen on {address}: {reason}"
                continue
            try:
                close(bind(role, address))
            except AddressInUse:  # the running server may use the address; `serve` reports an address that another program uses
                pass
            except ConfigError as exc:
                number = getattr(exc.__cause__, "errno", None)
                # An address that this machine does not have may belong to another machine, or be added to this one later.
                is_note = number in (errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL)
                yield "note" if is_note else "error", f"{where}: {exc}"


def _certificates(config: Config, now: float) -> Iterator[tuple[Level, str]]:
    """Yields an error for each file of TLS that cannot be used, and a note if only this user cannot read the file.

    Certificates that expire soon have a note. Listeners that use the same files have one line.
    """
    done = set()
    for role in ROLES:
        settings = tls_settings(config, role)
        if isinstance(settings, Ssl) and not settings.cert:
            yield "note", f"{located_key(config, f'{role}.ssl.enable')}: without key and cert, {tls.NOTE}"
        for name in ("cert", "ca"):
            file = getattr(settings, name, "")
            if not file or (pair := (file, getattr(settings, "key", "") if name == "cert" else "")) in done:
                continue
            done.add(pair)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                if name == "ca":
                    tls.load_authorities(context, file)
                    continue
                tls.load_pair(context, *pair, asks=True)
                facts = tls.facts_of(file)
                tls.require_valid(file, facts, now)
            except tls.TlsFileError as exc:
                yield "note" if exc.is_for_user else "error", f"{key_of_file(config, role, exc.key)}: {exc}"
                continue
            if facts is not None and facts.expires - now < tls.SOON_SECONDS:
                days = int((facts.expires - now) / SECONDS_A_DAY)
                soon = f"the certificate {file} expires in {days} day{'s' * (days != 1)}, on {tls.day(facts.expires)}: renew it"
                yield "note", f"{key_of_file(config, role, name)}: {soon}"


def _tls(config: Config) -> list[Ssl | MqttSsl]:
    """Returns the TLS settings of all listeners that use TLS."""
    return [settings for role in ROLES if (settings := tls_settings(config, role)) is not None]


def _not_world_readable(config: Config) -> Iterator[str]:
    """Yields a note about the files that some users of the operating system cannot read."""
    tls = [path for one in _tls(config) for path in (one.key, one.cert, getattr(one, "ca", "")) if path]
    names = [f"{file} ({_mode(Path(file))})" for file in dict.fromkeys((*config.files, *tls)) if not _is_open(Path(file))]
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield (
            f"checked as root, who may read every file; if the server runs as another user, that user must be able to read "
            f"{', '.join(names[:SHOWN])}{more}: check as that user with runuser -u USER -- push1st check -c FILE"
        )


def _is_open(file: Path) -> bool:
    """Returns whether every user of the operating system can read a file."""
    return bool(file.stat().st_mode & stat.S_IROTH) and all(one.stat().st_mode & stat.S_IXOTH for one in file.resolve().parents)


def _mode(file: Path) -> str:
    """Returns owner, group and permissions of a file."""
    state = file.stat()
    try:
        owner, group = pwd.getpwuid(state.st_uid).pw_name, grp.getgrgid(state.st_gid).gr_name
    except KeyError:
        owner, group = str(state.st_uid), str(state.st_gid)
    return f"{owner}:{group} {stat.S_IMODE(state.st_mode):04o}"
