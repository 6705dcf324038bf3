"""What a device keeps of one model across power cuts: a folder of small files beside the blob store.

    current    the manifest of the active version, sealed (see `device.trust`)
    order      the signed round order whose weights are the newest that the device holds
    outbox     update and residual of a round that waits for its receipt (see `store.outbox`)
    settled    the same file after its receipt; its residual goes into the next round
    personal   values of personal tensors (see `store.personal`)

Rules: every file is replaced atomically; at an activation `current` is replaced first and the others are cleared away after it,
because each of them names its version: what a cut leaves behind is known for what it is. Sealed and signed files are handed out
as they are: whoever reads them checks seal or signature again, so that neither a flipped bit nor another fleet's state is
believed. A file that cannot be read is as good as absent. The folder appears with the first activation.
"""

import contextlib
from pathlib import Path

from edgefl.store.atomic import replace, store_error, sync_directory, write_file
from edgefl.store.outbox import OutboxEntry, peek, read_entry
from edgefl.wire.messages import MAX_PACKET


class ModelState:
    """The folder of one model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outbox = root / "outbox"
        self.settled = root / "settled"
        self.personal = root / "personal"

    def current(self) -> bytes | None:
        """The signed manifest of the active version."""
        return self._signed("current")

    def order(self) -> bytes | None:
        """The newest signed order whose weights the device holds."""
        return self._signed("order")

    def activate(self, signed: bytes, *, keep: bool) -> None:
        """Make this signed manifest the active one.

        Args:
            signed: the manifest's message.
            keep: whether the files beside it belong to this very version and stay; otherwise they go.

        Raises:
            StoreError: it cannot be written; the old version is still the active one.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            sync_directory(self.root.parent)
        except OSError as error:
            raise store_error("create", self.root, error) from error
        write_file(self.root / "current", signed)
        if not keep:
            self._clear()

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
        try:
            self.outbox.unlink(missing_ok=True)
            sync_directory(self.root)
        except OSError as error:
            raise store_error("delete", self.outbox, error) from error

    def forget(self) -> None:
        """Clear everything away: it is another fleet's or another profile's, or damaged."""
        self._clear()
        with contextlib.suppress(OSError):
            (self.root / "current").unlink(missing_ok=True)

    def _clear(self) -> None:
        for path in (self.outbox, self.settled, self.personal, self.root / "order"):
            with contextlib.suppress(OSError):  # it is known for what it is, and the disk will be heard of again
                path.unlink(missing_ok=True)

    def _signed(self, name: str) -> bytes | None:
        try:
            with (self.root / name).open("rb") as file:
                return file.read(MAX_PACKET + 1)
        except OSError:
            return None


def _belonging(entry: OutboxEntry | None, version: int, variant: str) -> OutboxEntry | None:
    return entry if entry and (entry.version, entry.variant) == (version, variant) else None
