"""Throw-away identities as files, because TLS libraries read certificates from files only."""

import tempfile
from pathlib import Path
from types import TracebackType

from edgefl.identity.authority import Identity
from edgefl.link.address import BrokerAddress
from edgefl.store.atomic import store_error, write_file


class Wallet:
    """A private directory of identities for one broker, gone at the end of the `with` block."""

    def __init__(self, host: str, port: int, ca: Path) -> None:
        """For the broker at this address, whose certificate this CA has issued. Raises StoreError."""
        self._host, self._port, self._ca = host, port, ca
        self._count = 0
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="edgefl-")  # of mode 0700
        except OSError as error:
            raise store_error("create", Path(tempfile.gettempdir()), error) from error

    def address(self, identity: Identity) -> BrokerAddress:
        """The broker's address with this identity. Raises StoreError."""
        self._count += 1
        base = Path(self._directory.name) / str(self._count)
        write_file(base.with_suffix(".key"), identity.key, 0o600)
        write_file(base.with_suffix(".crt"), identity.certificate)
        return self.of_files(base.with_suffix(".crt"), base.with_suffix(".key"))

    def of_files(self, certificate: Path, key: Path) -> BrokerAddress:
        """The broker's address with an identity that lies elsewhere."""
        return BrokerAddress(self._host, self._port, self._ca, certificate, key)

    def __enter__(self) -> "Wallet":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._directory.cleanup()
