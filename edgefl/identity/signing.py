"""Signatures over messages: Ed25519 (RFC 8032), with the purpose inside what is signed.

Model: the *online* key signs round orders and assignments. A manifest names it for round orders, the fleet's root metadata for
assignments, so that it can be replaced. Manifests are believed because TUF metadata lists them (`identity.repository`).
What is signed is `edgefl NUL purpose NUL payload`: a signed assignment can never be replayed as a round order, and no
signature of another protocol made with the same key can be replayed here. A purpose holds no NUL, so the parts are unambiguous.
"""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgefl.errors import FleetError, SignatureError
from edgefl.wire.messages import Signed

ASSIGNMENT = "assignment"
ROUND = "round"
KEY_HINT = 16
"""Hex digits of the public key that a signed message carries, to word errors well; nothing is trusted because of it."""


def _covered(purpose: str, payload: bytes) -> bytes:
    return b"edgefl\0" + purpose.encode() + b"\0" + payload


class Signer:
    """A private signing key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "Signer":
        """A fresh key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> "Signer":
        """The key in a PEM file. Raises FleetError when it holds none."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FleetError("a signing key is damaged", found=str(error), remedy="Restore keys/ from a backup") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise FleetError("a signing key is of the wrong kind", expected="Ed25519", found=type(key).__name__)
        return cls(key)

    def to_pem(self) -> bytes:
        """PKCS 8, unencrypted; to be written with mode 0600."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key itself, for other formats of signatures."""
        return self._key

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, purpose: str, payload: bytes) -> Signed:
        """Signed message. Raises SignatureError when the purpose is empty or holds a NUL."""
        if not purpose or "\0" in purpose:
            raise SignatureError("a purpose that cannot be signed", expected="text without NUL", found=repr(purpose))
        return Signed(purpose, payload, self.public_key.hex()[:KEY_HINT], self._key.sign(_covered(purpose, payload)))


class Verifier:
    """A public key that signatures are checked against."""

    def __init__(self, public_key: bytes) -> None:
        """Raises SignatureError unless these are the 32 raw bytes of a key."""
        try:
            self._key = Ed25519PublicKey.from_public_bytes(public_key)
        except ValueError:
            raise SignatureError("no public key", expected="32 bytes", found=f"{len(public_key)} bytes") from None
        self._hint = public_key.hex()[:KEY_HINT]

    def verify(self, signed: Signed, purpose: str) -> bytes:
        """The payload, if it was signed by this key for this purpose.

        Raises:
            SignatureError: signed for another purpose, by another key, or the bytes were changed.
        """
        if signed.purpose != purpose:
            raise SignatureError("a message signed for another purpose", expected=repr(purpose), found=repr(signed.purpose))
        try:
            self._key.verify(signed.signature, _covered(purpose, signed.payload))
        except InvalidSignature:
            if signed.key != self._hint:
                raise SignatureError(
                    f"a {purpose} signed by a key that is not trusted here", expected=self._hint, found=repr(signed.key)
                ) from None
            raise SignatureError(
                f"the signature of a {purpose} does not hold", remedy="Ask for it again; if it stays, somebody changes messages"
            ) from None
        return signed.payload


def verify(signed: Signed, purpose: str, public_key: bytes) -> bytes:
    """The payload of a signed message, checked against the 32 raw bytes of a public key.

    Raises:
        SignatureError: signed for another purpose, by another key, the bytes were changed, or no key was given.
    """
    return Verifier(public_key).verify(signed, purpose)
