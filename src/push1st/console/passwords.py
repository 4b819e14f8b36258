"""The password of the console: its hash, and the key that signs sessions, which is derived from the hash.

A hash is `scrypt$N$r$p$salt$hash`; salt and hash are base64url. A clear-text password is hashed with a fixed salt, so that all
workers and machines have the same key. scrypt takes some 50 ms, so callers run `PasswordHash.fits` in a thread.
"""

import base64
import hashlib

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from push1st import auth

N, R, P = 1 << 14, 8, 1
HASH_BYTES = 32
SALT = b"push1st-console"
"""the salt of clear-text passwords"""
PREFIX = "scrypt$"
MAX_MEMORY = 80 << 20
"""the maximum number of bytes that scrypt may use; the configuration bounds N and r accordingly"""


class PasswordHash(msgspec.Struct, frozen=True):
    """The hash of a password. `text`: its text form."""

    text: str

    def __repr__(self) -> str:
        return "PasswordHash(…)"

    @property
    def key(self) -> bytes:
        """The key of the sessions."""
        return HKDF(SHA256(), 32, None, b"push1st console sessions").derive(self.text.encode())

    @property
    def cookie_name(self) -> str:
        """The end of the name of the cookie (`guard.Guard`)."""
        return HKDF(SHA256(), 4, None, b"push1st console cookie").derive(self.text.encode()).hex()

    def fits(self, password: str) -> bool:
        """Returns whether a password has this hash."""
        _, n, r, p, salt, _ = self.text.split("$")
        return auth.equal(self.text, hashed(password, _unbase64(salt), int(n), int(r), int(p)).text)


def stored(password: str) -> PasswordHash:
    """Returns the hash of the configured password, which is a hash or clear text."""
    return PasswordHash(password) if password.startswith(PREFIX) else hashed(password, SALT)


def hashed(password: str, salt: bytes, n: int = N, r: int = R, p: int = P) -> PasswordHash:
    """Returns the hash of a clear-text password."""
    digest = hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=MAX_MEMORY, dklen=HASH_BYTES
    )
    return PasswordHash(f"{PREFIX}{n}${r}${p}${_base64(salt)}${_base64(digest)}")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
