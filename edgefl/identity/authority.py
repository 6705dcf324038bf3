"""The fleet's private certificate authority.

Model: a root signs one intermediate of path length 0, the intermediate signs everything else, so that the root's key can be
taken offline after `edgefl init`. The broker gets a serverAuth certificate, the server and every device a clientAuth one: what
authenticates a device cannot pose as a broker, and the other way round. A device's common name is its id; a URI name
`spiffe://FLEET/device/ID` says the same in the form that other systems read.

Rules: EC P-256, SHA-256, random serial numbers (RFC 5280 section 4.1.2.2), extensions as RFC 5280 requires of them so that
strict verifiers accept the chain. Validity begins a day early, because a board's clock may lag, and is long, because boards
without a real-time clock must not lock themselves out. Everything here is bytes in, bytes out; others write the files.
"""

import datetime as dt
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefl.errors import FleetError
from edgefl.identity.requests import Request
from edgefl.names import BROKER, SERVER, check_id

ROOT_DAYS = 30 * 365
INTERMEDIATE_DAYS = 20 * 365
LEAF_DAYS = 10 * 365
"""Of what is made here and carried away: the broker, the server, a ready bundle. What a board asks for itself lives shorter."""
PROBE_DAYS = 1 / 24


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and its certificate, both PEM; `certificate` is followed by the intermediate unless this is an authority.

    Attributes:
        key: PKCS 8, unencrypted; to be written with mode 0600.
        certificate: one or two certificates, the own one first.
        serial: serial number in hexadecimal.
    """

    key: bytes
    certificate: bytes
    serial: str

    def __repr__(self) -> str:
        """Without the key, so that no log shows it."""
        return f"Identity(serial={self.serial})"


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs the fleet's certificates: the intermediate, and the root's certificate that everybody trusts."""

    fleet: str
    root: bytes
    intermediate: Identity

    def broker(self, hosts: tuple[str, ...] = (), *, now: dt.datetime | None = None, days: float = LEAF_DAYS) -> Identity:
        """A certificate for the broker, valid for `localhost`, 127.0.0.1 and these host names or addresses."""
        names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names += [name for name in dict.fromkeys(map(_host_name, hosts)) if name not in names]
        return self._sign(BROKER, names, ExtendedKeyUsageOID.SERVER_AUTH, now, days)

    def server(self, *, now: dt.datetime | None = None, days: float = LEAF_DAYS) -> Identity:
        """The server's own certificate as a client of the broker."""
        return self._sign(SERVER, [self._uri(f"server/{SERVER}")], ExtendedKeyUsageOID.CLIENT_AUTH, now, days)

    def device(self, device: str, *, now: dt.datetime | None = None) -> Identity:
        """A fresh key and certificate for a device. Raises InputError when the id cannot be used."""
        return self._sign(check_id(device), [self._uri(f"device/{device}")], ExtendedKeyUsageOID.CLIENT_AUTH, now)

    def probe(self, name: str, *, now: dt.datetime | None = None, days: float = PROBE_DAYS) -> Identity:
        """A short-lived client certificate in any name, with which the fleet looks at its own broker."""
        return self._sign(name, [self._uri(f"probe/{name}")], ExtendedKeyUsageOID.CLIENT_AUTH, now, days)

    def certify(self, request: Request, days: int, *, now: dt.datetime | None = None) -> tuple[bytes, str, float]:
        """Sign a certificate for a key that was born on a board, of whose request only name and key are used.

        Returns:
            The certificate followed by the intermediate (PEM), its serial number (hexadecimal), its end (seconds since 1970).

        Raises:
            InputError: the name cannot be a device's.
        """
        names = [self._uri(f"device/{check_id(request.name)}")]
        certificate = self._certificate(request.name, request.key, names, ExtendedKeyUsageOID.CLIENT_AUTH, now, days)
        chain = certificate.public_bytes(serialization.Encoding.PEM) + self.intermediate.certificate
        return chain, f"{certificate.serial_number:x}", certificate.not_valid_after_utc.timestamp()

    def _uri(self, path: str) -> x509.GeneralName:
        return x509.UniformResourceIdentifier(f"spiffe://{self.fleet}/{path}")

    def _sign(
        self,
        name: str,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: dt.datetime | None,
        days: float = LEAF_DAYS,
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(name, key.public_key(), names, usage, now, days)
        return _identity(key, certificate, chain=self.intermediate.certificate)

    def _certificate(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: dt.datetime | None,
        days: float,
    ) -> x509.Certificate:
        issuer = _certificate(self.intermediate.certificate)
        builder = _builder(name, key, issuer.subject, now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _finish(builder, _private_key(self.intermediate.key), issuer)


def found_authority(fleet: str, *, now: dt.datetime | None = None) -> tuple[Authority, Identity]:
    """A new authority for a fleet, and the root's identity, whose key belongs offline.

    Raises:
        InputError: the fleet's name cannot be used.
    """
    check_id(fleet, "fleet name")
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = _name(f"{fleet} root")
    builder = _builder(f"{fleet} root", root_key.public_key(), root_name, now, ROOT_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    signed = _finish(builder.add_extension(_key_usage(authority=True), critical=True), root_key, None)
    root = _identity(root_key, signed)

    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(f"{fleet} intermediate", key.public_key(), root_name, now, INTERMEDIATE_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    intermediate = _identity(key, _finish(builder, root_key, signed))
    return Authority(fleet, root.certificate, intermediate), root


def open_authority(fleet: str, root: bytes, key: bytes, certificate: bytes) -> Authority:
    """The authority from its PEM files.

    Args:
        fleet: name of the fleet.
        root: the root's certificate.
        key: the intermediate's private key.
        certificate: the intermediate's certificate.

    Raises:
        FleetError: a file is damaged, or the key is not the certificate's.
    """
    try:
        parsed = _certificate(certificate)
        _certificate(root)
        matches = _private_key(key).public_key() == parsed.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FleetError("the fleet's certificate authority is damaged", found=str(error), remedy="Restore ca/") from None
    if not matches:
        raise FleetError("the authority's key does not belong to its certificate", remedy="Restore ca/ from a backup")
    return Authority(fleet, root, Identity(key, certificate, f"{parsed.serial_number:x}"))


def serial_of(pem: bytes) -> int:
    """Serial number of the first certificate in a PEM file. Raises FleetError when there is none."""
    try:
        return _certificate(pem).serial_number
    except ValueError as error:
        raise FleetError("a certificate cannot be read", expected="PEM", found=str(error)[:200], remedy="Restore it") from None


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    name: str, public: ec.EllipticCurvePublicKey, issuer: x509.Name, now: dt.datetime | None, days: float
) -> x509.CertificateBuilder:
    """What all certificates have in common."""
    now = now or dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _finish(
    builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None
) -> x509.Certificate:
    """Sign; `issuer` is None for the root, which is its own."""
    if issuer is not None:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    return builder.sign(signer, hashes.SHA256())


def _identity(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, chain: bytes = b"") -> Identity:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(pem, certificate.public_bytes(serialization.Encoding.PEM) + chain, f"{certificate.serial_number:x}")


def _certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic curve key")
    return key
