"""Checks for `push1st check` whether the operating system's current user can run `serve` on this machine.

The checks change nothing: they create no folder, and bind an address only for a moment. The result depends on the machine
and on the user, so a deployment runs the checks as the service's user (`ExecStartPre=` of deploy/push1st.service).
"""

import grp
import os
import pwd
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from push1st.config.model import Config, Ssl
from push1st.config.mqtt import MqttSsl
from push1st.errors import ConfigError
from push1st.process.sockets import ROLES, AddressInUse, addresses, bind, close, tls_settings

SHOWN = 3
"""the maximum number of files that a note lists"""


def obstacle(folder: Path) -> str:
    """Returns the reason why this user cannot create files in a folder, or "". The folder need not exist yet."""
    existing = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    reason = "Read-only file system" if os.statvfs(existing).f_flag & os.ST_RDONLY else "Permission denied"
    return reason if existing == folder else f"{reason} in {existing}"


def mistakes(config: Config) -> list[str]:
    """Returns a line for each problem that prevents the start of the server."""
    unusable = [reason for reason, everywhere in _certificates(config) if everywhere]
    if not config.hooks.folder or not (reason := obstacle(Path(config.hooks.folder))):
        return unusable
    allowed = (
        "a folder that the server's user may write to; under systemd below /var/lib/NAME, with StateDirectory=NAME in the unit"
    )
    return [*unusable, f"hooks.folder: cannot keep hook events in {config.hooks.folder}: {reason}, allowed: {allowed}"]


def notes(config: Config) -> Iterator[str]:
    """Yields a line for each problem that depends on the user or the machine; for root, also on files that others cannot read."""
    for role in ROLES:
        for address in addresses(config, role):
            if address.scheme == "unix":
                reason = obstacle(Path(address.path).parent)
                if reason:
                    yield f"cannot listen here on {address}: {reason}"
                continue
            try:
                close(bind(role, address))
            except AddressInUse:  # the running server may use the address; `serve` reports an address that another program uses
                pass
            except ConfigError as exc:
                yield str(exc)
    yield from (reason for reason, everywhere in _certificates(config) if not everywhere)
    if os.geteuid() == 0:
        yield from _not_world_readable(config)


def _certificates(config: Config) -> Iterator[tuple[str, bool]]:
    """Yields why a certificate cannot be used, and whether every user of the operating system would fail for this reason."""
    for cert, key in dict.fromkeys((settings.cert, settings.key) for settings in _tls(config) if settings.cert):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
        except OSError as exc:
            yield f"cannot use the certificate {cert} with the key {key}: {exc}", isinstance(exc, ssl.SSLError)
    for settings in _tls(config):
        if isinstance(settings, MqttSsl) and settings.ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(settings.ca)
            except OSError as exc:
                yield f"cannot use the certificates of authorities in {settings.ca}: {exc}", isinstance(exc, ssl.SSLError)


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
