"""Keys that are born on the board, and the signing requests for them (PKCS 10, RFC 2986).

Model: the board makes an EC P-256 key and a request that names nothing but the device's id, signed with that key. Whoever signs
the certificate takes two things from the request, the name and the public key, and leaves everything else, requested extensions
above all: what a certificate permits is the authority's word alone.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefl.errors import ConfigError, SignatureError


@dataclass(frozen=True, slots=True)
class Request:
    """What is taken from a signing request: whom it names, and the public key, which its signature belongs to."""

    name: str
    key: ec.EllipticCurvePublicKey


def make_request(device: str) -> tuple[bytes, bytes]:
    """A fresh key for a device (PKCS 8, PEM, unencrypted) and the signing request for it (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, request.public_bytes(serialization.Encoding.DER)


def read_request(der: bytes) -> Request:
    """The request in these bytes, which come from a stranger.

    Raises:
        SignatureError: no request, not exactly one common name, another key than EC P-256, or a signature that does not hold.
    """
    try:
        request = x509.load_der_x509_csr(der)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = request.public_key()
        holds = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise SignatureError("a signing request that does not decode", found=str(error)[:100]) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError("a signing request for a key of the wrong kind", expected="EC P-256", found=type(key).__name__)
    if not holds:
        raise SignatureError("a signing request whose signature does not hold", remedy="Make a new one on the board")
    if len(request.subject) != 1 or len(names) != 1:
        raise SignatureError("a signing request that does not name one device", expected="a common name and nothing else")
    return Request(str(names[0].value), key)


def check_answer(chain: bytes, key: bytes, device: str, root: bytes) -> str:
    """Make sure that a certificate is the answer to our request.

    Args:
        chain: the device's certificate followed by the intermediate, PEM.
        key: our private key, PEM.
        device: our id.
        root: the fleet's root certificate, PEM.

    Returns:
        The certificate's serial number, hexadecimal.

    Raises:
        SignatureError: for another key or device, or not signed by the fleet.
        ConfigError: our own key or root cannot be read.
    """
    try:
        ours = serialization.load_pem_private_key(key, password=None).public_key()
        top = x509.load_pem_x509_certificate(root)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the board's key or root certificate cannot be read", found=str(error)[:100]) from None
    try:
        own, intermediate = x509.load_pem_x509_certificates(chain)
        own.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(top)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise SignatureError("a certificate that the fleet has not signed", found=str(error)[:100]) from None
    names = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if own.public_key() != ours or [name.value for name in names] != [device]:
        raise SignatureError("a certificate for another key or device", expected=device, found=own.subject.rfc4514_string()[:100])
    return f"{own.serial_number:x}"
