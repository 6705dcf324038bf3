"""Trusted metadata on the device: python-tuf's own client, fed from what the broker delivers.

Model: metadata comes as small retained messages. `hear` lays the newest one of each role on a shelf; `refresh` lets python-tuf's
`Updater` take from there what it wants, check it in the order of the specification and keep what it believes in a directory.
After that `manifest_hash` says which manifests exist, and `online_key` whose assignments to follow.

Rules:

* What is missing is no attack: `refresh` says False until everything that belongs together has come.
* Each attack has its error: an older document is a `RollbackError`, an expired one a `FreezeError`, documents that do not belong
  together a `MixError`, one that is longer than it may be an `EndlessDataError`, a wrong key a `SignatureError`.
* The clock is read once for each refresh. The directory is worth nothing without the first root, which came with the bundle.
* An error never makes the device forget what it believed before.
"""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.exceptions import Error as SigningError
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgefl.errors import EndlessDataError, FreezeError, MixError, RollbackError, SignatureError, StoreError
from edgefl.identity.repository import ROLES, online_key
from edgefl.wire.messages import MAX_PACKET

logging.getLogger("tuf").setLevel(logging.ERROR)  # it logs what it then raises

MOST_ROOTS = 256
"""Roots that are kept on the shelf, and that one refresh follows."""
LIMITS = UpdaterConfig(
    max_root_rotations=MOST_ROOTS,
    max_delegations=1,
    root_max_length=MAX_PACKET,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=16 * 1024,
    targets_max_length=MAX_PACKET,
)


class TrustedMetadata:
    """What a device believes of the fleet's metadata.

    Args:
        directory: where it is kept; created when missing.
        root: the root document that came with the bundle.
        wall: seconds since 1970.

    Raises:
        SignatureError: the bundle's root is no root document.
        StoreError: the directory cannot be written.
    """

    def __init__(self, directory: Path, root: bytes, wall: Callable[[], float]) -> None:
        self._directory = directory
        self._first = root
        self._wall = wall
        self._shelf = _Shelf()
        self._hashes: dict[str, bytes] = {}
        self._online = b""
        with _worded(directory):
            directory.mkdir(parents=True, exist_ok=True)
            updater = self._updater()
            updater._load_root()  # noqa: SLF001 - only what is on disk: the shelf is empty, and nothing is public that loads it
            self._online = online_key(updater._trusted_set.root)  # noqa: SLF001 - python-tuf gives no public access to root

    @property
    def online_key(self) -> bytes:
        """The 32 raw bytes of the key that signs assignments."""
        return self._online

    def hear(self, name: str, data: bytes) -> bool:
        """Metadata has come; whether it is news.

        Args:
            name: `timestamp`, `snapshot`, `targets` or `N.root`.
            data: as it came, at most `MAX_PACKET` bytes.

        Raises:
            SignatureError: there is no metadata of this name.
        """
        return self._shelf.lay(name, data)

    def refresh(self) -> bool:
        """Believe what can be believed.

        Returns:
            Whether everything is there; False while documents are still to come.

        Raises:
            SignatureError: or one of its kinds, by the attack that it looks like.
            EndlessDataError: a document is longer than it may be.
            StoreError: the directory cannot be written.
        """
        with _worded(self._directory):
            updater = self._updater()
            try:
                updater.refresh()
            except DownloadHTTPError:
                return False
            finally:
                self._online = online_key(updater._trusted_set.root)  # noqa: SLF001 - as above; a new root counts at once
            targets = updater._trusted_set.targets.targets  # noqa: SLF001 - all of them; the public way asks for one path
            self._hashes = {path: bytes.fromhex(file.hashes["sha256"]) for path, file in targets.items()}
        return True

    def manifest_hash(self, path: str) -> bytes | None:
        """SHA-256 of the manifest that is listed under a path; None if none is."""
        return self._hashes.get(path)

    def _updater(self) -> Updater:
        updater = Updater(str(self._directory), "shelf:", fetcher=self._shelf, config=LIMITS, bootstrap=self._first)
        # The board's clock may stand below what it has seen; the caller's does not.
        updater._trusted_set.reference_time = datetime.fromtimestamp(self._wall(), UTC)  # noqa: SLF001 - no public way to set the time
        return updater


class _Shelf(FetcherInterface):
    """The newest document of each name, handed out as if it were fetched."""

    def __init__(self) -> None:
        self._documents: dict[str, bytes] = {}

    def lay(self, name: str, data: bytes) -> bool:
        number, _, role = name.rpartition(".")
        if role not in ROLES or (role == "root") != (number.isascii() and number.isdigit() and len(number) < 6):
            raise SignatureError(
                "metadata of an unknown role", expected="timestamp, snapshot, targets or N.root", found=name[:60]
            )
        if self._documents.get(name) == data:
            return False
        if role == "root" and name not in self._documents and sum("." in known for known in self._documents) >= MOST_ROOTS:
            raise EndlessDataError("more root documents than a fleet can have", expected=f"at most {MOST_ROOTS}")
        self._documents[name] = data
        return True

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("shelf:/").removesuffix(".json")
        if name not in self._documents:
            raise DownloadHTTPError(f"{name} has not come", 404)
        return iter((self._documents[name],))


class _worded:  # noqa: N801 - a context manager, read as a word
    """Says python-tuf's errors in ours, by the attack that each of them looks like."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        match error:
            case None:
                return
            case ExpiredMetadataError():
                remedy = "Check this device's clock, and that `edgefl serve` runs"
                raise FreezeError("the fleet's metadata has expired", found=str(error), remedy=remedy) from None
            case BadVersionNumberError():
                raise RollbackError("older metadata than was believed before", found=str(error)) from None
            case LengthOrHashMismatchError():
                raise MixError("metadata that does not belong together", found=str(error)[:300]) from None
            case DownloadLengthMismatchError():
                raise EndlessDataError("metadata is longer than it may be", found=str(error)) from None
            case UnsignedMetadataError() | SigningError():
                raise SignatureError("metadata without the signatures that it needs", found=str(error)[:300]) from None
            case RepositoryError() | DownloadError():
                raise SignatureError("metadata cannot be believed", found=str(error)[:300]) from None
            case OSError():
                raise StoreError(
                    f"cannot keep metadata in {self._directory}", found=str(error), remedy="Check the disk"
                ) from None
