"""What a device knows about one model across power cuts: a folder of small files beside the blob store.

    current    the signed manifest of the active version
    order      the signed round order whose weights are the newest that the device holds
    outbox     update and residual of a round that waits for its receipt (see `store.outbox`)
    settled    the same file after its receipt; its residual goes into the next round

Rules: every file is replaced atomically; `current` is the last one written at an activation, so that a cut leaves the old version
or the new one; outbox, order and settled carry their version, so that leftovers of an old version are known for what they are.
"""

from pathlib import Path

from edgefl.errors import PeerError, StoreError
from edgefl.store.atomic import replace, write_file
from edgefl.store.outbox import OutboxEntry, read_entry
from edgefl.wire.messages import Manifest, RoundOrder, Signed, decode


class ModelState:
    """The folder of one model. Its signatures were checked before anything was written here, and files are checked when used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outbox = root / "outbox"
        self.settled = root / "settled"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {root}", found=str(error), remedy="Check the state directory") from error

    def manifest(self) -> Manifest | None:
        """The active manifest; None if there is none or it does not decode."""
        signed = self._signed("current")
        return None if signed is None else decode(signed.payload, Manifest)

    def order(self) -> RoundOrder | None:
        """The newest order whose weights the device holds."""
        signed = self._signed("order")
        return None if signed is None else decode(signed.payload, RoundOrder)

    def activate(self, signed: bytes) -> None:
        """Make this signed manifest the active one; outbox, residual and order of the old version go."""
        write_file(self.root / "current", signed)
        for leftover in (self.outbox, self.settled, self.root / "order"):
            leftover.unlink(missing_ok=True)

    def adopt(self, signed: bytes) -> None:
        """Keep this signed order."""
        write_file(self.root / "order", signed)

    def waiting(self) -> OutboxEntry | None:
        """The update of the active version that waits for its receipt."""
        return self._of_active(read_entry(self.outbox))

    def settled_round(self) -> int:
        """The last round of the active version whose receipt has come; 0 if none."""
        entry = self._of_active(read_entry(self.settled))
        return entry.round if entry else 0

    def settle(self) -> None:
        """The receipt is here: the outbox becomes the settled one in one rename."""
        if self.outbox.exists():
            replace(self.outbox, self.settled)

    def needed(self) -> set[bytes]:
        """SHA-256 of every blob that the model still needs."""
        active, order = self.manifest(), self.order()
        keep = {ref.sha256 for ref in active.files} if active else set()
        return keep | {order.weights.sha256} if order else keep

    def _of_active(self, entry: OutboxEntry | None) -> OutboxEntry | None:
        active = self.manifest()
        matches = entry and active and (entry.version, entry.variant) == (active.version, active.variant)
        return entry if matches else None

    def _signed(self, name: str) -> Signed | None:
        try:
            return decode((self.root / name).read_bytes(), Signed)
        except FileNotFoundError:
            return None
        except PeerError:
            return None  # written atomically, so this is a damaged card: as good as absent, and heard again from the broker
        except OSError as error:
            raise StoreError(f"cannot read {self.root / name}", found=str(error), remedy="Check the disk") from error
