"""Adding up what a simulation costs, and what came of its updates."""

from dataclasses import dataclass, field

from edgefl.simulate.downlink import Published
from edgefl.simulate.jobs import Played, Player
from edgefl.simulate.traffic import file_length, order_length, update_length


@dataclass(slots=True)
class Ledger:
    """The running totals of one simulation. An accumulator with one owner.

    Attributes:
        model, variant: names in the messages.
        parameters: of an update.
        uplink, downlink, dense: bytes so far; `dense` is what the updates would be as plain float32.
        sent: updates that were sent.
        updates, late, refused, failed: as in `result.Totals`.
    """

    model: str
    variant: str
    parameters: int
    uplink: int = 0
    downlink: int = 0
    dense: int = 0
    sent: int = 0
    updates: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    _order: tuple[int, int] = field(default=(0, 0))

    def fetch(self, held: int, published: Published) -> int:
        """Bytes that a device fetches to begin a round, which holds the weights of the round `held`."""
        if self._order[0] != published.number:
            differences = tuple(published.differences.values())
            self._order = (
                published.number,
                order_length(self.model, self.variant, published.number, published.file, published.task, differences),
            )
        length = self._order[1] + file_length(published.fetched(held))
        self.downlink += length
        return length

    def send(self, player: Player, number: int, played: Played) -> int:
        """Bytes of an update; a training that failed sends none."""
        if played.failure:
            return 0
        length = update_length(player.name, self.model, self.variant, number, played)
        self.uplink += length
        self.dense += 4 * self.parameters
        self.sent += 1
        return length
