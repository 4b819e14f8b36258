"""The rules of the section `console`: readers of its keys, mistakes that would expose the password, and useless settings."""

import re
from collections.abc import Iterator

from push1st.config.addresses import Listen, is_loopback
from push1st.config.model import ConsoleConfig
from push1st.config.origins import as_sent
from push1st.config.readers import scalar
from push1st.config.tree import Value, not_allowed
from push1st.errors import ConfigError

LEAST_PASSWORD, LONGEST_PASSWORD = 12, 512
"""numbers of characters"""
NO_CONSOLE = "has no effect without console.password, so there is no console"
"""the warning about a section `console` without a password"""
HASH = "scrypt$"
_HASH = re.compile(r"scrypt\$(?:16384|32768|65536)\$8\$1\$[A-Za-z0-9_-]{16,86}\$[A-Za-z0-9_-]{43}\Z")
_PASSWORD = f"a text of {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters, or the output of push1st console password"
_ORIGIN = re.compile(r"https?://[^\s/?#@]+/?\Z", re.IGNORECASE)


def is_password(text: str) -> bool:
    """Returns whether a text may be a password in clear text."""
    return LEAST_PASSWORD <= len(text) <= LONGEST_PASSWORD and not text.startswith(HASH)


def password(value: Value) -> str:
    """Reads a password in clear text, or its hash."""
    found = scalar(value, _PASSWORD, show=False)
    if not (_HASH.match(found) or is_password(found)):
        raise not_allowed(value, _PASSWORD, show=False)
    return found


def origin(value: Value) -> str:
    """Reads an origin. Returns the origin in the form that browsers send."""
    allowed = "the origin of the console in browsers, such as https://console.example.com, without a path"
    found = scalar(value, allowed)
    sent = as_sent(found) if _ORIGIN.match(found) else ""
    if not sent:
        raise not_allowed(value, allowed)
    return sent


def exposed(console: ConsoleConfig) -> Listen | None:
    """Returns an address at which other machines would send the password in clear text; None if there is no such address."""
    if console.ssl.enable or console.origin.startswith("https://"):
        return None
    return next((one for one in console.listen if one.scheme != "unix" and not is_loopback(one.host)), None)


def require_encryption(console: ConsoleConfig, section: Value) -> ConsoleConfig:
    """Raises ConfigError if the password would travel over a network in clear text."""
    address = exposed(console) if console.password else None
    if address is not None:
        raise ConfigError(
            f"{section.at('listen') or section}: found {address}, at which the password would travel in clear text, allowed: an "
            "address of this machine such as tcp://127.0.0.1:6003, or console.ssl, or a proxy with TLS and its console.origin: "
            "https://…"
        )
    return console


def warnings(console: ConsoleConfig, section: Value | None) -> Iterator[str]:
    """Yields a line for each setting that has no effect, or is probably a mistake. section: the section `console`, if any."""
    if section is None or section.kind != "mapping":
        return
    if not console.password:
        yield f"{section}: {NO_CONSOLE}"
    elif not console.listen:
        yield f"{section}: console.listen is switched off, so there is no console"
    elif console.origin and not console.ssl.enable and not console.proxies:
        yield (
            f"{section.at('origin') or section}: without console.proxies, all operators behind the proxy count as one address, "
            "and have five tries a minute to sign in together"
        )
    if console.origin.startswith("http://") and not is_loopback(_host(console.origin)):
        yield f"{section.at('origin') or section}: without https://, the password travels to the proxy in clear text"


def overridden(file: Value | None, variable: Value | None) -> Iterator[str]:
    """Yields a line if a variable overrides the password in a file, because `push1st watch` reads the same variable.

    file, variable: the values of `console.password`, if any.
    """
    if file is not None and variable is not None and file.kind != "nothing" and file.text != variable.text:
        yield f"{variable}: overrides {file.place}; if the variable is only for push1st watch, set it for this command only"


def _host(origin: str) -> str:
    host = origin.partition("://")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
