"""Makes a self-signed certificate for `ssl: { enable: true }` without certificate files (Push1st API, section 9). Reads
certificates.

The functions import cryptography themselves: the library is large, and many servers have no certificate.
"""

import datetime as dt
import ipaddress
import socket
import tempfile
from pathlib import Path

import msgspec

DAYS = 365
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
