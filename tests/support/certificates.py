"""Certificates for tests: an authority, and certificates that it signs."""

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """An authority, which writes its certificate and those that it signs as PEM files into a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key, 1).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=days))
        )

    def issue(self, *names: str, days: int = 1) -> tuple[Path, Path]:
        """Signs a certificate for 127.0.0.1; returns the files of the certificate and of its key.

        names: the common names of the subject. days: the days until the certificate expires; negative for an expired one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = self._builder(subject, key, days).add_extension(address, critical=False).sign(self._key, hashes.SHA256())
        number = made.serial_number
        cert, private = self._folder / f"{number}.pem", self._folder / f"{number}.key"
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return cert, private


class Links:
    """The files of a certificate as certbot makes them: two links, which a renewal replaces one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority(folder)
        self.cert, self.key = folder / "fullchain.pem", folder / "privkey.pem"
        self.serial = 0
        self.renew()
        self.trust = ssl.create_default_context(cafile=str(self._authority.certificate))

    def renew(self, fits: bool = True) -> None:
        """Replaces the files. fits: whether the new key belongs to the new certificate."""
        cert, key = self._authority.issue("push.example", days=90)
        if not fits:
            _, key = self._authority.issue("push.example")
        for link, file in ((self.cert, cert), (self.key, key)):
            new = self._folder / "new"
            new.symlink_to(file)
            new.replace(link)
        if fits:
            self.serial = x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
