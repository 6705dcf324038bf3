"""TLS handshakes that end before MQTT begins: which certificate a broker shows, and whether it refuses ours.

Model: nobody's place is taken, because a client id is first named in the CONNECT packet, which is never sent. In TLS 1.3 a server
judges our certificate after our side of the handshake is done, so that a refusal is read, not raised by the handshake.
"""

import socket
import ssl

from edgefl.identity.authority import serial_of
from edgefl.link.address import BrokerAddress, explain, tls_context

SECONDS = 5.0
VERDICT_SECONDS = 1.0
"""How long a broker may take to refuse a certificate."""


def shown_serial(address: BrokerAddress) -> str:
    """Serial number, hexadecimal, of the certificate that the broker shows.

    Raises:
        LinkError: no broker, or one whose certificate does not hold or does not name this host.
    """
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=SECONDS) as plain,
            tls_context(address).wrap_socket(plain, server_hostname=address.host) as tls,
        ):
            der = tls.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise explain(error).error(address) from None
    return f"{serial_of(ssl.DER_cert_to_PEM_cert(der).encode()):x}"


def is_refused(address: BrokerAddress) -> bool:
    """Whether the broker refuses our certificate in the handshake. Raises LinkError when there is no broker to ask."""
    try:
        plain = socket.create_connection((address.host, address.port), timeout=SECONDS)
    except OSError as error:
        raise explain(error).error(address) from None
    with plain:
        try:
            with tls_context(address).wrap_socket(plain, server_hostname=address.host) as tls:
                tls.settimeout(VERDICT_SECONDS)
                tls.recv(1)
        except ssl.SSLCertVerificationError as error:  # it is we who refuse
            raise explain(error).error(address) from None
        except TimeoutError:
            return False  # it waits for our first packet
        except OSError:
            return True
    return True
