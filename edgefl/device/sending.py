"""Sending updates: part by part, never faster than the link takes them, and never twice at the same time.

Model: an update is *on its way* while parts of it are still to be handed to the link, or the link still has something that the
broker has not acknowledged. The link keeps what it was handed across connections, so an update that is on its way needs no
repetition. Afterwards only the server's receipt tells whether it has arrived, and the session decides when to send again.

Rules: without a connection nothing is handed over; the link's queue never holds more than `WINDOW` bytes because of us, however
large the update is.
"""

from collections import deque
from pathlib import Path

from edgefl.errors import LinkError, StoreError
from edgefl.link.contract import Link
from edgefl.store.outbox import OutboxEntry, read_entry, read_update
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.rounds import PART_SIZE, UpdatePart

WINDOW = 4 * PART_SIZE
"""Bytes in the link's queue above which the next part waits."""


class UpdateSender:
    """Sends the updates of one device. Owned by the agent's one thread."""

    def __init__(self, device: str, link: Link) -> None:
        self._topic = topics.update(device)
        self._link = link
        self._sha256: dict[str, bytes] = {}
        self._parts: dict[str, deque[UpdatePart]] = {}

    @property
    def busy(self) -> bool:
        """Whether `advance` has more to hand over as soon as the link has room."""
        return self._link.connected and any(self._parts.values())

    def send(self, model: str, outbox: Path, sha256: bytes) -> None:
        """Begin to send the update with this hash, unless it is on its way.

        Raises:
            StoreError: the outbox does not hold it.
        """
        on_its_way = bool(self._parts.get(model)) or self._link.outgoing > 0
        if not self._link.connected or (self._sha256.get(model) == sha256 and on_its_way):
            return
        entry = read_entry(outbox)
        if entry is None or entry.sha256 != sha256:
            raise StoreError(f"the outbox {outbox} does not hold the update", remedy="The round will be trained again")
        self._sha256[model] = sha256
        self._parts[model] = deque(_cut(model, entry, read_update(outbox)))
        self.advance()

    def forget(self, model: str) -> None:
        """The update of this model is done with: what is left of it is not sent."""
        self._sha256.pop(model, None)
        self._parts.pop(model, None)

    def advance(self) -> None:
        """Hand over parts while the link has room."""
        for parts in self._parts.values():
            while parts and self._link.connected and self._link.outgoing < WINDOW:
                try:
                    self._link.publish(self._topic, encode(parts[0]))
                except LinkError:
                    return  # the queue is full of other things
                parts.popleft()


def _cut(model: str, entry: OutboxEntry, data: bytes) -> list[UpdatePart]:
    starts = range(0, len(data), PART_SIZE)
    return [
        UpdatePart(
            model,
            entry.version,
            entry.variant,
            entry.round,
            entry.samples,
            entry.loss_before,
            entry.loss_after,
            entry.sha256,
            part,
            len(starts),
            data[start : start + PART_SIZE],
            entry.before,
        )
        for part, start in enumerate(starts)
    ]
