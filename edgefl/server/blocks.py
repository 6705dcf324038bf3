"""Serving blocks: the shell around the delivery machine. It knows the files on offer, reads their blocks and publishes them."""

from collections.abc import Callable, Iterable

from edgefl.errors import MessageError, StoreError
from edgefl.server.delivery import Delivery, Effect, Event, Offered, Refuse, SendBlocks, Tick, Wanted, step, wake_at
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.blocks import block_length
from edgefl.wire.messages import BLOCK_SIZE, Block, FileRef, Want, encode

PublishBlock = Callable[[str, str, bytes], None]
"""Model, topic, payload."""


class BlockServer:
    """Answers requests for blocks of the files on offer.

    Args:
        blobs: where the files are.
        publish: sends a block to everybody who listens, and counts its bytes for the model.
        room: bytes that the link's queue can take now.
    """

    def __init__(self, blobs: BlobStore, publish: PublishBlock, room: Callable[[], int]) -> None:
        self._blobs = blobs
        self._publish = publish
        self._room = room
        self._files: dict[bytes, tuple[str, FileRef]] = {}
        self._delivery = Delivery()

    def offer(self, model: str, files: Iterable[FileRef]) -> None:
        """Serve these files of a model from now on."""
        for ref in files:
            if ref.sha256 not in self._files:
                self._files[ref.sha256] = (model, ref)
                self._step(Offered(ref.sha256, len(ref.blocks)), 0.0)

    def wanted(self, device: str, request: Want, now: float) -> str:
        """Take up a request; returns the model that the file belongs to.

        Raises:
            MessageError: the request is refused, because the file is not on offer or too many are asked for.
        """
        for effect in self._step(Wanted(device, request), now):
            if isinstance(effect, Refuse):
                raise MessageError(f"{device} asks for file {request.sha256.hex()[:16]}: {effect.reason}")
        return self._files[request.sha256][0]

    def advance(self, now: float) -> None:
        """Send what is due.

        Raises:
            StoreError: a file on offer cannot be read.
        """
        if wake_at(self._delivery) is None:
            return
        for effect in self._step(Tick(self._room()), now):
            if isinstance(effect, SendBlocks):
                for index in effect.indices:
                    self._send(effect.sha256, index)

    def wait(self, now: float) -> float:
        """Seconds until `advance` has something to do."""
        at = wake_at(self._delivery)
        return 3600.0 if at is None else max(0.0, at - now)

    def _send(self, sha256: bytes, index: int) -> None:
        model, ref = self._files[sha256]
        length = block_length(ref, index)
        data = self._blobs.read_range(sha256, index * BLOCK_SIZE, length)
        if len(data) != length:
            raise StoreError(f"blob {sha256.hex()[:16]} is shorter than its description", remedy="Push the model again")
        self._publish(model, topics.block(sha256.hex()), encode(Block(sha256[:16], index, data)))

    def _step(self, event: Event, now: float) -> tuple[Effect, ...]:
        self._delivery, effects = step(self._delivery, event, now)
        return effects
