"""Serving blocks: the shell around the delivery machine. It knows the files on offer, reads their blocks and publishes them.

Rule: a block is checked before it is sent. A file whose blob is missing or damaged is no longer offered, so that a bad disk costs
one file and not the server.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgefl.errors import BlockError, MessageError, StoreError
from edgefl.server.delivery import Delivery, step, wake_at
from edgefl.server.delivery_events import Counts, Effect, Event, Offered, Refuse, SendBlocks, Tick, Wanted, Withdrawn
from edgefl.server.gather import GATHER
from edgefl.server.lanes import slot_of
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.blocks import block_length, check_block
from edgefl.wire.files import BLOCK_SIZE, Block, FileRef, Want
from edgefl.wire.messages import encode

PublishBlock = Callable[[str, str, bytes], None]
"""Model, topic, payload."""
Expecting = Callable[[bytes], frozenset[str]]
"""The devices that are expected to want the file with this SHA-256."""


@dataclass(frozen=True, slots=True)
class Rates:
    """When block messages may leave; rates are bytes per second, None for no limit.

    Attributes:
        everybody: to all devices together.
        device: to each device that is served alone.
        gather: seconds that a file waits at most for the devices that are expected to want it (`server.gather`).
    """

    everybody: float | None = None
    device: float | None = None
    gather: float = GATHER


UNLIMITED = Rates()
log = logging.getLogger("edgefl.server")


class BlockServer:
    """Answers requests for blocks of the files on offer.

    Args:
        blobs: where the files are.
        publish: sends a block to whoever listens on a topic, and counts its bytes for the model.
        room: bytes that the link's queue can take now.
        rates: how fast blocks may leave.
        expected: who is waited for; nobody, if it is not known.
    """

    def __init__(
        self,
        blobs: BlobStore,
        publish: PublishBlock,
        room: Callable[[], int],
        rates: Rates = UNLIMITED,
        expected: Expecting = lambda _: frozenset(),
    ) -> None:
        self._blobs = blobs
        self._publish = publish
        self._room = room
        self._files: dict[bytes, tuple[str, FileRef]] = {}
        self._expected = expected
        self._delivery = Delivery(rate=rates.everybody, device_rate=rates.device, gather=rates.gather)

    @property
    def counts(self) -> Counts:
        """What has happened so far."""
        return self._delivery.counts

    def offer(self, files: Mapping[bytes, tuple[str, FileRef]]) -> None:
        """Serve these files, by SHA-256 with the model that each belongs to, and no others."""
        for sha256 in self._files.keys() - files.keys():
            self._step(Withdrawn(sha256), 0.0)
        for sha256 in files.keys() - self._files.keys():
            self._step(Offered(sha256, len(files[sha256][1].blocks)), 0.0)
        self._files = dict(files)

    def wanted(self, device: str, request: Want, now: float) -> str:
        """Take up a request; returns the model that the file belongs to.

        Raises:
            MessageError: the request is refused, because the file is not on offer or too many are asked for.
        """
        for effect in self._step(Wanted(device, request, self._expected(request.sha256)), now):
            if isinstance(effect, Refuse):
                raise MessageError(f"{device} asks for file {request.sha256.hex()[:16]}: {effect.reason}")
        return self._files[request.sha256][0]

    def advance(self, now: float) -> None:
        """Send what is due."""
        at = wake_at(self._delivery)
        if at is None or at > now:
            return
        for effect in self._step(Tick(self._room()), now):
            if isinstance(effect, SendBlocks):
                try:
                    for index in effect.indices:
                        self._send(effect.sha256, index, effect.device, slot_of(now))
                except (StoreError, BlockError) as error:
                    log.error("a file cannot be served any more: %s", error)
                    self._step(Withdrawn(effect.sha256), now)

    def wait(self, now: float) -> float:
        """Seconds until `advance` has something to do."""
        at = wake_at(self._delivery)
        return 3600.0 if at is None else max(0.0, at - now)

    def _send(self, sha256: bytes, index: int, device: str, sent: int) -> None:
        model, ref = self._files[sha256]
        data = self._blobs.read_range(sha256, index * BLOCK_SIZE, block_length(ref, index))
        check_block(ref, index, data)
        topic = topics.own_block(device) if device else topics.block(sha256.hex())
        self._publish(model, topic, encode(Block(sha256[:16], index, data, sent)))

    def _step(self, event: Event, now: float) -> tuple[Effect, ...]:
        self._delivery, effects = step(self._delivery, event, now)
        return effects
