"""Where a broker listens and what it needs for it, and how to tell that it is there."""

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import BrokerError

READY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Listener:
    """One TLS listener.

    Attributes:
        directory: what the broker generates and keeps (`FLEET/broker`).
        ca: root certificate that clients must chain to.
        certificate, key: of the broker; the certificate is followed by the intermediate.
        port: TCP port.
        bind: address of one interface, or `0.0.0.0` for all.
        crl: the list of revoked certificates, or None for a broker without one.
        revoked: devices that may do nothing any more.
    """

    directory: Path
    ca: Path
    certificate: Path
    key: Path
    port: int
    bind: str = "127.0.0.1"
    crl: Path | None = None
    revoked: tuple[str, ...] = ()

    @property
    def reachable(self) -> str:
        """An address of this machine at which the listener answers."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind)  # noqa: S104 - compared, not bound


def check_free(listener: Listener) -> None:
    """Make sure that the port can be listened on.

    Raises:
        BrokerError: something listens there already, the address is not this machine's, or the port is privileged.
    """
    family = socket.AF_INET6 if ":" in listener.bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listener.bind, listener.port))
        except (OSError, OverflowError) as error:
            raise BrokerError(
                f"cannot listen on {listener.bind}:{listener.port}",
                found=getattr(error, "strerror", None) or str(error),
                remedy="Stop what uses the port, or choose another with --port, or another address with --bind",
            ) from None


def wait_ready(listener: Listener, alive: Callable[[], None], seconds: float = READY_SECONDS) -> None:
    """Wait until the listener completes a TLS handshake with a certificate of the fleet.

    Args:
        listener: where.
        alive: called between attempts; raises when there is nothing to wait for any more.
        seconds: how long.

    Raises:
        BrokerError: the time is over, or what answers is not this fleet's broker.
    """
    context = ssl.create_default_context(cafile=str(listener.ca))
    context.check_hostname = False  # the address may be one that the certificate does not name; the fleet's root must match
    deadline = time.monotonic() + seconds
    while True:
        alive()
        try:
            with (
                socket.create_connection((listener.reachable, listener.port), timeout=2.0) as plain,
                context.wrap_socket(plain),
            ):
                return
        except ssl.SSLCertVerificationError as error:
            raise BrokerError(
                f"what answers on port {listener.port} is not this fleet's broker",
                found=error.verify_message,
                remedy="Choose another port with --port",
            ) from None
        except OSError as error:
            if time.monotonic() > deadline:
                raise BrokerError(f"the broker did not answer within {seconds:.0f} s", found=str(error)) from None
        time.sleep(0.05)
