"""The claim broker: a second Mosquitto process, for boards that have no certificate yet.

Model: its configuration is the commented template `broker/claims.conf`, which says why it is a process of its own. Boards come in
on `listener.port` without a certificate, the fleet's server on the next higher port with its own.
"""

import pwd
from dataclasses import replace
from os import geteuid
from pathlib import Path

from edgefl.brokers.acl import CLAIM_ACL, CLAIM_SERVER_ACL
from edgefl.brokers.listener import Listener, check_free
from edgefl.brokers.mosquitto import Mosquitto, fill_in
from edgefl.errors import BrokerError
from edgefl.store.atomic import store_error, write_file


def write_claim_configuration(listener: Listener) -> Path:
    """Write `mosquitto.conf` and both access files into the listener's directory; returns the former.

    Raises:
        BrokerError: a path that Mosquitto's configuration cannot express.
        StoreError: a file cannot be written.
    """
    directory = listener.directory.resolve()
    values = {
        "PORT": str(listener.port),
        "SERVERPORT": str(listener.port + 1),
        "BIND": listener.bind,
        "USER": pwd.getpwuid(geteuid()).pw_name,
        "CAFILE": str(listener.ca.resolve()),
        "CERTFILE": str(listener.certificate.resolve()),
        "KEYFILE": str(listener.key.resolve()),
        "ACL": str(directory / "acl"),
        "SERVERACL": str(directory / "server-acl"),
    }
    text = fill_in("claims.conf", values)
    write_file(directory / "acl", CLAIM_ACL.encode(), 0o600)
    write_file(directory / "server-acl", CLAIM_SERVER_ACL.encode(), 0o600)
    write_file(directory / "mosquitto.conf", text.encode(), 0o600)
    return directory / "mosquitto.conf"


class ClaimBroker(Mosquitto):
    """A running claim broker; use it as a context manager, which stops it."""

    def __init__(self, listener: Listener) -> None:
        """Start it and wait until boards can connect; `listener.port + 1` must be free too.

        Raises:
            BrokerError: as for `Mosquitto`.
            StoreError: a file cannot be written.
        """
        try:
            listener.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise store_error("create", listener.directory, error) from error
        check_free(replace(listener, port=listener.port + 1))
        super().__init__(listener, write_claim_configuration)


def refuse_embedded() -> None:
    """Raises BrokerError: the embedded broker has no listener for boards without a certificate."""
    raise BrokerError(
        "the embedded broker takes no claims",
        expected="Mosquitto",
        remedy="Install it (Debian: apt install mosquitto), or provision ready bundles, which need no claim",
    )
