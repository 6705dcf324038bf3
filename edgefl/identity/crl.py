"""The list of revoked certificates (CRL, RFC 5280 section 5), signed by the intermediate, for the broker to read.

Model: the list is a whole: each one replaces the last. `nextUpdate` says until when a reader may believe it, and to OpenSSL, and
so to Mosquitto, a list that is too old or not yet valid means that *nobody* is believed (mosquitto issue 1826). A list that never
leaves the fleet's own machines gains nothing from a short life, so it lives a year, begins a day early for clocks that lag, and
is signed anew long before.

Rules: numbers only rise; serial numbers that are listed stay listed; a list is read back and checked before it is trusted here.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgefl.errors import FleetError, SignatureError
from edgefl.identity.authority import Authority

CRL_DAYS = 365
EARLY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Crl:
    """What a list says.

    Attributes:
        number: rises from list to list.
        begins, ends: seconds since 1970; outside of them it locks everybody out.
        serials: of the revoked certificates.
    """

    number: int
    begins: float
    ends: float
    serials: frozenset[int]


def sign_crl(
    authority: Authority,
    serials: Mapping[int, float],
    *,
    last: Crl | None = None,
    now: dt.datetime | None = None,
    days: float = CRL_DAYS,
) -> bytes:
    """A new list, PEM.

    Args:
        authority: whose intermediate signs; it must be the issuer of the certificates.
        serials: serial number of each revoked certificate, and since when (seconds since 1970).
        last: the list that this one replaces.
        now: of signing; the system's clock if not given.
        days: how long it holds.

    Raises:
        FleetError: the authority's key is damaged.
    """
    now = now or dt.datetime.now(dt.UTC)
    begins = now - EARLY
    if last is not None:  # of two lists that begin in the same second OpenSSL may believe either
        begins = max(begins, min(now, dt.datetime.fromtimestamp(last.begins + 1, dt.UTC)))
    issuer = x509.load_pem_x509_certificate(authority.intermediate.certificate)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(begins)
        .next_update(now + dt.timedelta(days=days))
        .add_extension(x509.CRLNumber(max(last.number + 1 if last else 1, int(now.timestamp()))), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    for serial in sorted(serials):
        since = dt.datetime.fromtimestamp(serials[serial], dt.UTC)
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        )
    key = serialization.load_pem_private_key(authority.intermediate.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FleetError(
            "the authority's key is of the wrong kind", expected="elliptic curve", remedy="Restore ca/ from a backup"
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_crl(pem: bytes, authority: Authority) -> Crl:
    """What a list says, if this fleet's intermediate signed it.

    Raises:
        SignatureError: it does not decode, another authority signed it, or it was changed.
    """
    remedy = "Let the fleet sign a new one with `edgefl broker configure`"
    try:
        crl = x509.load_pem_x509_crl(pem)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        ends = crl.next_update_utc
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise SignatureError("a revocation list that does not decode", found=str(error)[:200], remedy=remedy) from None
    issuer = x509.load_pem_x509_certificate(authority.intermediate.certificate)
    if crl.issuer != issuer.subject:
        raise SignatureError(
            "a revocation list of another authority",
            expected=issuer.subject.rfc4514_string(),
            found=crl.issuer.rfc4514_string()[:200],
            remedy=remedy,
        )
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key) or ends is None:
        raise SignatureError("a revocation list whose signature does not hold", remedy=remedy)
    serials = frozenset(entry.serial_number for entry in crl)
    return Crl(number, crl.last_update_utc.timestamp(), ends.timestamp(), serials)
