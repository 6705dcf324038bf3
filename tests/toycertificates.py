"""Throw-away certificates: an authority in a directory, and what it issues.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Days = tuple[float, float]
"""From when until when something is valid, in days from now."""
LATELY = (-1.0, 1.0)


class Authority:
    """A certificate authority whose own certificate and key are files like those that it issues.

    Attributes:
        files: of its certificate, and of its key.
    """

    def __init__(self, directory: Path, name: str = "test-ca", *, host: str = "127.0.0.1", days: Days = LATELY) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._name, self._key = _named(name), ec.generate_private_key(ec.SECP256R1())
        self.files = self._written(name, self._name, self._key, is_ca=True, host=host, days=days)

    def issue(self, name: str, *, host: str = "127.0.0.1", days: Days = LATELY) -> tuple[Path, Path]:
        """Files of a certificate for this common name and of its key."""
        return self._written(name, _named(name), ec.generate_private_key(ec.SECP256R1()), is_ca=False, host=host, days=days)

    def _written(
        self, name: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool, host: str, days: Days
    ) -> tuple[Path, Path]:
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return files


def certificate(directory: Path, name: str, *, days: Days = LATELY) -> tuple[Path, Path]:
    """Files of a certificate that is its own authority's, and of its key."""
    return Authority(directory, name, days=days).files


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
