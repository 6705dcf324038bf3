"""Where the broker is, how to prove who we are to it, and what its refusals mean in plain words.

Rules: TLS 1.2 or newer, always; both sides show certificates; the broker's name is checked. The files are read again for every
connection, so that a rotated certificate is used from the next one on.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import LinkError

CLOCK = "Check this machine's clock, then the dates in the broker's certificate"
VERIFY_REMEDIES = {
    9: CLOCK,
    10: CLOCK,
    62: "Connect to a name that stands in the broker's certificate, or issue one with this name",
    64: "Connect to an address that stands in the broker's certificate, or issue one with this address",
}
"""By OpenSSL's X509_V_ERR number: not yet valid, expired, host name mismatch, IP address mismatch."""
OTHER_CA = "Give the CA certificate that issued the broker's certificate"
OUR_CERTIFICATE = "Check that this client's certificate was issued by the broker's CA and is neither expired nor revoked"
SILENT_REFUSAL = "the broker closed the connection before accepting it"
REFUSALS = {
    "Not authorized": "Check that the broker knows this identity, and that its certificate is not revoked",
    "Bad user name or password": "Check that the broker knows this identity, and that its certificate is not revoked",
    "Client identifier not valid": "Use the identity in the certificate as the client id",
    "Server unavailable": "Try again later",
}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker and the identity to use there.

    Attributes:
        host: a name or address that stands in the broker's certificate.
        port: TCP port of its TLS listener.
        ca: PEM file of the CA that issued the broker's certificate.
        certificate: PEM file of our certificate, followed by its intermediates; None for a board that has none yet.
        key: PEM file of our private key, without a pass phrase; may be the same file.
    """

    host: str
    port: int
    ca: Path
    certificate: Path | None
    key: Path | None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no connection, and what to do about it."""

    reason: str
    remedy: str = ""

    def error(self, address: BrokerAddress) -> LinkError:
        """The same as an exception."""
        return LinkError(f"cannot connect to the broker at {address}", found=self.reason, remedy=self.remedy)


def tls_context(address: BrokerAddress) -> ssl.SSLContext:
    """A context that trusts this CA alone and shows this certificate.

    Raises:
        LinkError: a file is missing, unreadable or no certificate, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    remedy = "Check the paths in the configuration, or provision this device again"
    try:
        context.load_verify_locations(address.ca)
    except OSError as error:
        raise LinkError(f"cannot use the CA certificate {address.ca}", found=_plain(error), remedy=remedy) from None
    if address.certificate is None:
        return context
    try:
        context.load_cert_chain(address.certificate, address.key)
    except OSError as error:
        raise LinkError(
            f"cannot use the certificate {address.certificate} with the key {address.key}", found=_plain(error), remedy=remedy
        ) from None
    return context


SIMPLE = (
    (socket.gaierror, Trouble("the host name cannot be resolved", "Check the host name and the name server")),
    (ConnectionRefusedError, Trouble("connection refused", "Start the broker, or check host and port")),
    (TimeoutError, Trouble("no answer", "Check the network, host and port")),
)


def explain(error: Exception, *, accepted: bool = False) -> Trouble:
    """What a failed connection means, for a person; `accepted` if the broker had already accepted it.

    In TLS 1.3 the broker judges our certificate after our side of the handshake is done; a broker that then just closes the
    connection means the same.
    """
    if isinstance(error, ssl.SSLError):
        return _explain_tls(error)
    for kind, trouble in SIMPLE:
        if isinstance(error, kind):
            return trouble
    if isinstance(error, ConnectionError) and not accepted:
        return Trouble(SILENT_REFUSAL, OUR_CERTIFICATE)
    return Trouble(_plain(error), "Check the network, host and port")


def _explain_tls(error: ssl.SSLError) -> Trouble:
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = VERIFY_REMEDIES.get(error.verify_code, OTHER_CA)
        return Trouble(f"the broker's certificate does not hold ({error.verify_message})", remedy)
    if "ALERT" in str(error.reason):
        return Trouble(f"the broker refuses our certificate ({_plain(error)})", OUR_CERTIFICATE)
    return Trouble(f"TLS failed ({_plain(error)})", "Check that the port is the broker's TLS listener")


def refusal(name: str) -> Trouble:
    """What a CONNACK return code means."""
    return Trouble(f"the broker refuses us ({name.lower()})", REFUSALS.get(name, "Look into the broker's log"))


def _plain(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
