"""Whose a certificate is, which hosts it names, and from when to when."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from edgefl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Validity:
    """What a certificate says of itself: its common name, seconds since 1970, its serial number in hexadecimal, its hosts."""

    name: str
    begins: float
    ends: float
    serial: str = ""
    hosts: tuple[str, ...] = ()


def validity_of(pem: bytes) -> Validity:
    """Of the first certificate in a PEM file.

    Raises:
        ConfigError: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(
            "the device's certificate cannot be read",
            expected="PEM",
            found=str(error)[:200],
            remedy="Copy the whole bundle again",
        ) from None
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name, serial = str(names[0].value) if names else "", f"{certificate.serial_number:x}"
    return Validity(name, begins.timestamp(), ends.timestamp(), serial, _hosts(certificate))


def ends_of(pem: bytes) -> tuple[float, ...]:
    """Ends (seconds since 1970) of all certificates in a PEM file, in their order. Raises ConfigError when there is none."""
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError("a certificate cannot be read", expected="PEM", found=str(error)[:200]) from None
    return tuple(one.not_valid_after_utc.timestamp() for one in chain)


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and addresses that a server with this certificate may have."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)
