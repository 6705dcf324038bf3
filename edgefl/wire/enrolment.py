"""How a device comes by its certificates: the first one for a claim, each later one on the connection that it replaces.

Model: the private key is made on the board and never leaves it; what travels is a signing request (`csr`) and the certificate
that answers it. A refusal is a code that the board can tell apart, and a text for a person.
"""

from typing import Annotated

import msgspec

from edgefl.wire.messages import MAX_PACKET, Id, Text

MAX_CSR = 2048
"""Bytes of a certificate signing request; ours have 200."""
MAX_CHAIN = 6144
"""Bytes of a certificate with its intermediate; ours have 1,600."""


class ClaimRequest(msgspec.Struct, frozen=True, array_like=True):
    """A board without a certificate asks for its first one, on the claim broker.

    Attributes:
        device: the id that it claims.
        token: the one-time secret from its claim.
        csr: certificate signing request (PKCS 10, DER) for a key that was made on the board.
        profile: what it believes to be; the claim is bound to both.
    """

    device: Id
    token: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    csr: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CSR)]
    profile: Id


class ClaimReply(msgspec.Struct, frozen=True, array_like=True):
    """The answer: a certificate, or a code why there is none.

    Attributes:
        certificate: the board's, followed by the intermediate, PEM; empty when refused.
        root: the TUF root metadata with which the board begins; empty if the bundle has it.
        code: empty, or what was wrong, see `edgefl.server.claims`.
        text: the same for a person.
    """

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)] = b""
    root: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKET)] = b""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    text: Text = ""


class RenewRequest(msgspec.Struct, frozen=True, array_like=True):
    """A device says which certificate its connection uses and, with a request, asks for the next one.

    Attributes:
        using: serial number, hexadecimal.
        csr: for a new key (PKCS 10, DER); empty when nothing is asked for.
    """

    using: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,40}\Z")]
    csr: Annotated[bytes, msgspec.Meta(max_length=MAX_CSR)] = b""


class Renewed(msgspec.Struct, frozen=True, array_like=True):
    """The answer: a certificate as in `ClaimReply`, or a code; the code `rotate` is the order to ask for one now."""

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)] = b""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    text: Text = ""
