"""`push1st console password`: makes the hash of a password for `console.password`."""

import getpass
import secrets
import sys

from push1st.cli.arguments import Arguments
from push1st.config.console import LEAST_PASSWORD, LONGEST_PASSWORD, is_password
from push1st.console.passwords import hashed
from push1st.errors import ConfigError

SALT_BYTES = 16


def run_password(_options: Arguments) -> int:
    """Reads a password and prints its hash. Raises ConfigError."""
    password = _typed() if sys.stdin.isatty() else _line()
    if not is_password(password) or not password.isprintable():
        raise ConfigError(
            f"the password must have {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters, none of them a control character"
        )
    print(hashed(password, secrets.token_bytes(SALT_BYTES)).text)
    return 0


def _typed() -> str:
    """Returns a password that the user types twice; the terminal does not show it."""
    try:
        password = getpass.getpass("Password of the console: ")
        again = getpass.getpass("The same password again: ")
    except EOFError:
        raise ConfigError("the input ended before the password was complete") from None
    if password != again:
        raise ConfigError("the two passwords differ, so nothing was printed")
    return password


def _line() -> str:
    """Returns the first line of the standard input."""
    try:
        return sys.stdin.readline(2 * LONGEST_PASSWORD).removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigError("the password must be text in UTF-8") from None
