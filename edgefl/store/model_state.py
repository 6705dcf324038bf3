"""What a device keeps of one model across power cuts: a folder of small files beside the blob store.

    current    the manifest of the active version, sealed (see `device.trust`)
    previous   that of the version which was active before
    candidate  that of the version which is being tried
    trial      how often the trial was begun (`TrialRecord`)
    failed     versions that have failed on this device (`Failure`)
    order      the signed round order whose weights are the newest that the device holds
    order.previous  the same of the version that was active before
    outbox     update and residual of a round that waits for its receipt (see `store.outbox`)
    settled    the same file after its receipt; its residual goes into the next round
    personal   values of personal tensors (see `store.personal`)

Rules: every file is replaced atomically. An activation copies `current` to `previous` and renames `candidate` to `current`; a
revert renames `previous` to `current`: whenever the power is cut, `current` is the old manifest or the new one. The other files
are cleared away after that, because each of them names its version: what a cut leaves behind is known for what it is. Sealed
and signed files are handed out as they are: whoever reads them checks seal or signature again, so that neither a flipped bit nor
another fleet's state is believed. A file that cannot be read is as good as absent. The folder appears with the first candidate.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgefl.device.state import Failure
from edgefl.store.atomic import replace, store_error, sync_directory, write_file
from edgefl.store.outbox import OutboxEntry, peek, read_entry
from edgefl.wire.messages import MAX_PACKET

SEALED = 64
"""Bytes by which a sealed or signed file may be longer than a packet; what is longer still is cut, and so not believed."""


class TrialRecord(msgspec.Struct, frozen=True, array_like=True):
    """Trials of a candidate: its version and the number of its rollout, how many were begun, and the active version's rollout."""

    version: int
    rollout: int
    starts: int
    held: int = 0


class ModelState:
    """The folder of one model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outbox = root / "outbox"
        self.settled = root / "settled"
        self.personal = root / "personal"

    def current(self) -> bytes | None:
        """The sealed manifest of the active version."""
        return self._signed("current")

    def previous(self) -> bytes | None:
        """The sealed manifest of the version that was active before."""
        return self._signed("previous")

    def candidate(self) -> bytes | None:
        """The sealed manifest of the version that is being tried."""
        return self._signed("candidate")

    def orders(self) -> tuple[bytes, ...]:
        """The newest signed orders whose weights the device holds, of the active version and of the one before."""
        found = (self._signed("order"), self._signed("order.previous"))
        return tuple(signed for signed in found if signed is not None)

    def trial(self) -> TrialRecord | None:
        """What is known of the last candidate's trials."""
        try:
            return msgspec.msgpack.decode(self._signed("trial") or b"", type=TrialRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def failed(self) -> tuple[Failure, ...]:
        """The versions that have failed here, newest last."""
        try:
            return msgspec.msgpack.decode(self._signed("failed") or b"", type=tuple[Failure, ...])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return ()

    def prepare(self, signed: bytes, record: TrialRecord, failed: Iterable[Failure]) -> None:
        """Keep a candidate and the number of this start; `failed` is what is still known to have failed.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            sync_directory(self.root.parent)
        except OSError as error:
            raise store_error("create", self.root, error) from error
        self._keep_failed(failed)
        if self.candidate() != signed:
            write_file(self.root / "candidate", signed)
        write_file(self.root / "trial", msgspec.msgpack.encode(record))

    def activate(self, *, back: bool = False) -> None:
        """Make the candidate the active version, and the active one the previous; repeated after a cut, it does the rest.

        Args:
            back: whether the candidate is the previous version, whose order then is the active one again.

        Raises:
            StoreError: it cannot be written; the old version is still the active one.
        """
        current, order = self.current(), self.root / "order"
        kept = self._signed("order.previous") if back else None
        if current is not None:
            write_file(self.root / "previous", current)
        if order.exists():
            replace(order, self.root / "order.previous")
        replace(self.root / "candidate", self.root / "current")
        self._clear()
        if kept is not None:
            self.adopt(kept)

    def replace_current(self, sealed: bytes) -> None:
        """Keep another manifest of the active version: one with the same files and another key. Raises StoreError."""
        write_file(self.root / "current", sealed)

    def abandon(self) -> None:
        """There is no candidate any more. Raises StoreError."""
        self._delete(self.root / "candidate")

    def refuse(self, failed: Iterable[Failure]) -> None:
        """Keep what has failed, then drop the candidate. Raises StoreError."""
        self._keep_failed(failed)
        self.abandon()

    def revert(self, failed: Iterable[Failure]) -> None:
        """Keep what has failed, then make the previous version the active one again.

        Raises:
            StoreError: it cannot be written; the version that is given up is still the active one.
        """
        self._keep_failed(failed)
        replace(self.root / "previous", self.root / "current")
        self._clear()

    def _keep_failed(self, failed: Iterable[Failure]) -> None:
        if tuple(failed) != self.failed():
            write_file(self.root / "failed", msgspec.msgpack.encode(tuple(failed)))

    def adopt(self, signed: bytes) -> None:
        """Keep this signed order. Raises StoreError."""
        write_file(self.root / "order", signed)

    def waiting(self, version: int, variant: str) -> OutboxEntry | None:
        """The update of this version and variant that waits for its receipt."""
        return _belonging(read_entry(self.outbox), version, variant)

    def settled_round(self, version: int, variant: str) -> int:
        """The last round of this version and variant whose update the server has stored; 0 if none."""
        entry = _belonging(read_entry(self.settled), version, variant)
        return entry.round if entry else 0

    def last_settled(self, version: int, variant: str) -> OutboxEntry | None:
        """What the settled update of this version and variant says of itself, unchecked."""
        return _belonging(peek(self.settled), version, variant)

    def settle(self) -> None:
        """The server has stored the update: its residual goes into the next round. Raises StoreError."""
        replace(self.outbox, self.settled)

    def withdraw(self) -> None:
        """The server will never count the update: it and its residual are dropped, the residual before it stays.

        Raises:
            StoreError: the file cannot be deleted.
        """
        self._delete(self.outbox)

    def forget(self) -> None:
        """Clear everything away: it is another fleet's or another profile's, or damaged."""
        self._clear()
        for name in ("order.previous", "previous", "candidate", "trial", "failed", "current"):
            with contextlib.suppress(OSError):
                (self.root / name).unlink(missing_ok=True)

    def _clear(self) -> None:
        for path in (self.outbox, self.settled, self.personal, self.root / "order"):
            with contextlib.suppress(OSError):  # it is known for what it is, and the disk will be heard of again
                path.unlink(missing_ok=True)

    def _delete(self, path: Path) -> None:
        try:
            if path.exists():
                path.unlink(missing_ok=True)
                sync_directory(self.root)
        except OSError as error:
            raise store_error("delete", path, error) from error

    def _signed(self, name: str) -> bytes | None:
        try:
            with (self.root / name).open("rb") as file:
                return file.read(MAX_PACKET + SEALED)
        except OSError:
            return None


def _belonging(entry: OutboxEntry | None, version: int, variant: str) -> OutboxEntry | None:
    return entry if entry and (entry.version, entry.variant) == (version, variant) else None
