"""Makes a self-signed certificate for `ssl: { enable: true }` without certificate files (Push1st API, section 9). Reads
certificates, and finds the reason why the files of a listener cannot be used.

The functions import cryptography themselves: the library is large, and many servers have no certificate.
"""

import datetime as dt
import ipaddress
import socket
import ssl
import tempfile
from pathlib import Path

import msgspec

from push1st.errors import ConfigError

DAYS = 365
SOON_SECONDS = 14 * 86_400
"""the time before its end in which a certificate should be renewed; the alert Push1stCertificateExpires has the same time"""
NOTE = "self-signed certificate in use, which clients reject unless they are configured to accept it"


class CertificateFacts(msgspec.Struct, frozen=True):
    """The content of a certificate.

    begins, expires: the times from which and until which the certificate is valid, in seconds on the wall clock.
    names: the hosts and addresses that the certificate is for.
    """

    begins: float
    expires: float
    names: frozenset[str]


def facts_of(file: str) -> CertificateFacts | None:
    """Returns the content of the first certificate in a file; None if the file cannot be read."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(Path(file).read_bytes())[0]
        begins, expires = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return CertificateFacts(begins, expires, frozenset())
    return CertificateFacts(begins, expires, frozenset(str(name.value) for name in names))


class TlsFileError(ConfigError):
    """A file of a listener cannot be used.

    `key`: the key of the file in the section `ssl`: cert, key or ca.
    `is_for_user`: whether another user of the operating system may be able to read the file.
    """

    def __init__(self, key: str, text: str, is_for_user: bool = False) -> None:
        super().__init__(text)
        self.key = key
        self.is_for_user = is_for_user


def load_pair(context: ssl.SSLContext, cert: str, key: str, *, asks: bool) -> None:
    """Loads a certificate and its key into a context that no connection uses. Raises TlsFileError.

    asks: whether OpenSSL may ask the terminal for the password of a key, which stops this process until the answer.
    """
    _require_pem("cert", cert, f"the certificate {cert}", b"CERTIFICATE-----", "certificate")
    content = _require_pem("key", key, f"the key {key}", b"PRIVATE KEY-----", "private key")
    try:
        context.load_cert_chain(cert, key, None if asks else _no_password)
    except (ssl.SSLError, OSError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise TlsFileError("key", f"cannot use the key {key}: it does not belong to the certificate {cert}") from exc
        if facts_of(cert) is None:
            raise TlsFileError("cert", f"cannot use the certificate {cert}: its PEM text is damaged") from exc
        if b"ENCRYPTED" in content:
            why = "it is encrypted, and its password was not entered, allowed: a key without a password"
            raise TlsFileError("key", f"cannot use the key {key}: {why}") from exc
        if not _is_key(content):
            raise TlsFileError("key", f"cannot use the key {key}: its PEM text is damaged") from exc
        why = reason.replace("_", " ").lower()
        raise TlsFileError("cert", f"cannot use the certificate {cert} with the key {key}: {why}") from exc


def load_authorities(context: ssl.SSLContext, ca: str) -> None:
    """Loads the certificates of the authorities that sign client certificates. Raises TlsFileError."""
    _require_pem("ca", ca, f"the certificates of authorities in {ca}", b"CERTIFICATE-----", "certificate")
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as exc:
        raise TlsFileError("ca", f"cannot use the certificates of authorities in {ca}: their PEM text is damaged") from exc


def require_valid(cert: str, facts: CertificateFacts | None, now: float) -> None:
    """Raises TlsFileError if a certificate has expired, or is not valid yet. now: seconds on the wall clock."""
    if facts is not None and not facts.begins <= now < facts.expires:
        when = f"it expired on {day(facts.expires)}" if now >= facts.expires else f"it is valid from {day(facts.begins)}"
        raise TlsFileError("cert", f"cannot use the certificate {cert} now: {when}")


def day(seconds: float) -> str:
    """Returns the date of a time on the wall clock."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d")


def _require_pem(name: str, file: str, words: str, mark: bytes, what: str) -> bytes:
    """Returns the content of a PEM file. Raises TlsFileError. mark: the end of each line that begins or ends a part."""
    try:
        content = Path(file).read_bytes()
    except OSError as exc:
        why = "the file does not exist" if isinstance(exc, FileNotFoundError) else exc.strerror
        raise TlsFileError(name, f"cannot use {words}: {why}", isinstance(exc, PermissionError)) from exc
    if mark not in content:
        raise TlsFileError(name, f"cannot use {words}: found no {what} in it, allowed: a PEM file with a {what}")
    return content


def _is_key(content: bytes) -> bool:
    """Returns whether a PEM text without a password has a private key that can be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        load_pem_private_key(content, None)
    except UnsupportedAlgorithm:
        return True
    except (ValueError, TypeError):
        return False
    return True


def _no_password() -> str:
    return ""


def self_signed(folder: Path | None = None) -> tuple[str, str]:
    """Writes a new key and a certificate for this host into two files that only this user can read; returns their paths.

    folder: the folder for the files; None: the system's folder for temporary files.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys(("localhost", socket.gethostname()))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "push1st self-signed")])
    now = dt.datetime.now(dt.UTC)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return _file(private, folder), _file(certificate.public_bytes(serialization.Encoding.PEM), folder)


def _file(content: bytes, folder: Path | None) -> str:
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:  # only the owner can read this file
        file.write(content)
        return file.name
