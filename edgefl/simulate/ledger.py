"""Adding up what a simulation costs, and what came of its updates."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgefl.simulate.downlink import Published
from edgefl.simulate.jobs import Played, Player
from edgefl.simulate.scene import Scene
from edgefl.simulate.traffic import file_length, order_length, update_length


@dataclass(frozen=True, slots=True)
class Named:
    """How a structure is called in messages: model and variant."""

    model: str
    variant: str


@dataclass(slots=True)
class Ledger:
    """The running totals of one simulation. An accumulator with one owner.

    Attributes:
        names: of the structures.
        scene: who trains what.
        uplink, downlink, dense: bytes so far; `dense` is what the updates would be as plain float32.
        sent: updates that were sent.
        updates, late, refused, failed: as in `result.Totals`.
    """

    names: Sequence[Named]
    scene: Scene
    uplink: int = 0
    downlink: int = 0
    dense: int = 0
    sent: int = 0
    updates: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    _orders: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Of an update; of several structures the mean over the devices, rounded."""
        sent = np.array([structure.sent for structure in self.scene.structures])
        return round(float(sent[self.scene.kinds].mean()))

    def fetch(self, held: int, published: Published) -> int:
        """Bytes that a device fetches to begin a round, which holds the weights of the round `held`."""
        kind, number = published.kind, published.number
        if self._orders.get(kind, (0, 0))[0] != number:
            name, differences = self.names[kind], tuple(published.differences.values())
            order = order_length(name.model, name.variant, number, published.file, published.task, differences)
            self._orders[kind] = (number, order)
        length = self._orders[kind][1] + file_length(published.fetched(held))
        self.downlink += length
        return length

    def send(self, player: Player, number: int, played: Played) -> int:
        """Bytes of an update; a training that failed sends none."""
        if played.failure:
            return 0
        kind = self.scene.kind(player.number)
        name = self.names[kind]
        length = update_length(player.name, name.model, name.variant, number, played)
        self.uplink += length
        self.dense += 4 * self.scene.structures[kind].sent
        self.sent += 1
        return length
