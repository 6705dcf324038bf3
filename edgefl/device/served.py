"""What an application may use of a model that the agent holds: read from the state directory, and never written to it.

Model: the agent's `current` names the active version, its newest order the weights that were adopted since, `personal` the
device's own values. Each is replaced by a rename, so `marks` (inode, time and length of these files) change exactly when
something new is to be served, and cost three calls of stat.

Rules: manifest, order and files are believed as the agent believes them: by the seal, by the signature that the manifest names,
by SHA-256 on every read. What was read stays in memory: the agent may delete files at any time.
"""

from dataclasses import dataclass
from pathlib import Path

from edgefl.codec.weights import decode_weights
from edgefl.device.config import Bundle
from edgefl.device.trust import kept_manifest, kept_order
from edgefl.errors import MessageError, StoreError
from edgefl.layout import Float32
from edgefl.names import check_id
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState
from edgefl.store.personal import with_personal
from edgefl.wire.releases import SERVE, Manifest
from edgefl.wire.rounds import RoundOrder

Marks = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """A graph and the weights to run it with.

    Attributes:
        manifest: of the active version.
        round: whose weights these are; 0 for the version's own.
        graph: SHA-256 and content of the graph.
        weights: the whole vector, float32; None if the graph has its own.
    """

    manifest: Manifest
    round: int
    graph: tuple[bytes, bytes]
    weights: Float32 | None


class Shelf:
    """Where one model lies on a device.

    Args:
        bundle: of the device.
        name: of the model.

    Raises:
        InputError: no model can have this name.
        StoreError: the device holds no such model; the text lists which it holds.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        check_id(name, "model name")
        self.name = name
        self._config = bundle.config
        self._disk = ModelState(bundle.state / "models" / name)
        self._watched = (self._disk.root / "current", self._disk.root / "order", self._disk.personal)
        if not self._watched[0].is_file():
            raise _absent(bundle.state, name)
        self._blobs = BlobStore(bundle.state / "blobs")

    def marks(self) -> Marks:
        """What changes when there is something new to serve."""
        return tuple(_mark(path) for path in self._watched)

    def read(self, *, adopted: bool = True) -> Served:
        """What is to be served now; unless `adopted`, with the weights that came with the version.

        Raises:
            PeerError: the manifest is not believed.
            StoreError: a file is missing or damaged. It may have been deleted meanwhile: look whether the marks have changed.
        """
        sealed = self._disk.current()
        if sealed is None:
            raise StoreError(f"the device holds no version of {self.name}", remedy="Wait until its agent has activated one")
        manifest = kept_manifest(sealed, self.name, self._config)
        order = kept_order(self._disk.orders(), manifest) if adopted else None
        quantised = next((ref for ref in manifest.files if ref.role == SERVE), None)
        own = manifest.trains and len(manifest.layout.personal())  # what the graph's weights do not have
        if quantised and order is None and not own:
            return Served(manifest, 0, (quantised.sha256, self._blobs.get(quantised.sha256)), None)
        return self.exact(manifest, order)

    def exact(self, manifest: Manifest, order: RoundOrder | None) -> Served:
        """A version with float32 arithmetic and the weights of an order, or its own. Raises as `read`."""
        weights = self._blobs.get((order.weights if order else manifest.file("weights")).sha256)
        try:
            vector = decode_weights(weights, manifest.layout)
        except MessageError as error:
            raise StoreError(f"the weights of {self.name} are damaged", found=str(error)) from error
        vector = with_personal(self._disk.personal, manifest.version, manifest.layout, vector)
        graph = manifest.file("infer").sha256
        return Served(manifest, order.round if order else 0, (graph, self._blobs.get(graph)), vector)


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _absent(state: Path, name: str) -> StoreError:
    try:
        known = sorted(path.parent.name for path in (state / "models").glob("*/current"))
    except OSError:
        known = []
    return StoreError(
        f"{state} holds no active version of a model called {name!r}",
        expected=f"one of {', '.join(known)}" if known else "",
        found="" if known else "no model",
        remedy="Check the name and STATE_DIRECTORY, and that this user may read there; the agent fetches what was pushed",
    )
