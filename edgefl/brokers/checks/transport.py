"""The connection itself: version of TLS, and the broker's own certificate."""

import socket
import ssl
import time
import warnings

from edgefl.brokers.checks.finding import Finding, failed, ok, unknown
from edgefl.brokers.checks.scene import A, Scene
from edgefl.errors import LinkError
from edgefl.identity.validity import ends_of
from edgefl.link.address import explain, tls_context

CONNECT_SECONDS = 5.0
DAY = 86400.0
NEAR_END_DAYS = 30
"""A certificate or list that ends sooner should be renewed now."""
NEAR_AUTHORITY_DAYS = 365
"""The same of the authority: time to provision every device anew."""


def check_reachable(scene: Scene) -> None:
    """Raises LinkError unless something listens there."""
    try:
        socket.create_connection((scene.host, scene.port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        trouble = explain(error)
        raise LinkError(
            f"cannot reach a broker at {scene.host}:{scene.port}", found=trouble.reason, remedy=trouble.remedy
        ) from None


def check_tls_version(scene: Scene) -> Finding:
    """A client that knows nothing newer than TLS 1.1 must be turned away."""
    name = "tls version"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that these versions are old is the point
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        address = scene.address(A)
        if address.certificate is not None:
            context.load_cert_chain(address.certificate, address.key)
        with _connect(scene) as plain, context.wrap_socket(plain) as tls:
            found = tls.version()
    except ssl.SSLError as error:
        if error.reason == "NO_PROTOCOLS_AVAILABLE":
            return unknown(name, "this machine's OpenSSL cannot speak TLS 1.1", "Run the check on another machine")
        return ok(name, "TLS 1.1 is refused")
    except (OSError, ValueError):
        return ok(name, "TLS 1.1 is refused")
    return failed(name, f"{found} is accepted", "Set `tls_version tlsv1.2`")


def check_certificate(scene: Scene) -> Finding:
    """The broker's certificate chains to the fleet's root, names the host, and does not end soon."""
    name, remedy = (
        "broker certificate",
        "Run `edgefl certificates renew broker`, for the host in fleet.toml, and let the broker use it",
    )
    try:
        with (
            _connect(scene) as plain,
            tls_context(scene.address(A)).wrap_socket(plain, server_hostname=scene.host) as tls,
        ):
            ends = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        return failed(name, error.verify_message, remedy)
    except (OSError, KeyError, ValueError) as error:
        return failed(name, f"no handshake ({error})"[:200], "Check that the port is the broker's TLS listener")
    days = (ends - time.time()) / DAY
    if days < NEAR_END_DAYS:
        return failed(name, f"ends in {days:.0f} days", remedy)
    return ok(name, f"names {scene.host}, ends in {days:.0f} days")


def check_authority(scene: Scene) -> Finding:
    """Root and intermediate, by which everybody here is believed, do not end soon."""
    name, authority = "authority", scene.authority
    days = (min(*ends_of(authority.root), *ends_of(authority.intermediate.certificate)) - time.time()) / DAY
    if days < NEAR_AUTHORITY_DAYS:
        return failed(name, f"ends in {days:.0f} days", "Found a new fleet, and provision the devices in it")
    return ok(name, f"root and intermediate hold for {days:.0f} days at least")


def _connect(scene: Scene) -> socket.socket:
    return socket.create_connection((scene.host, scene.port), timeout=CONNECT_SECONDS)
