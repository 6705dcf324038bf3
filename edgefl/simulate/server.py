"""The simulated server of one family: what the live one does with updates and weights, without ledger, files and clock.

Model: for each round it publishes the weights of each structure (encoded and decoded as devices fetch them) and the task; it
decodes updates, folds them with their staleness into the plan's aggregator, in the parent's coordinates, and makes the next
parent of the result.

Rules: as in `edgefl.server.training`: an update that would make a weight too large to be written is refused; weights that cannot
be written are given up, and the round closes with those that it began with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from edgefl.aggregate.closing import collector, outcome
from edgefl.aggregate.contract import Aggregator
from edgefl.aggregate.counting import check_range, weight_of
from edgefl.aggregate.server import begin
from edgefl.codec.history import History
from edgefl.codec.marks import gone, marked
from edgefl.codec.update import decode
from edgefl.compress.magnitude import Moment, share_gone
from edgefl.errors import ModelError, UpdateError
from edgefl.jumpstart import is_race
from edgefl.layout import Float32, Index, Layout
from edgefl.participation import mean_loss
from edgefl.server.variants import largest_weight
from edgefl.simulate.downlink import Downlink, Published
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.jobs import Played
from edgefl.simulate.setting import Family
from edgefl.wire.tasks import task_of


@dataclass(frozen=True, slots=True)
class _View:
    """One structure: the parent coordinates that it has and those that its updates carry (None: all), and its way down."""

    index: Index | None
    sent: Index | None
    size: int
    downlink: Downlink


class Server:
    """One family's server. An accumulator with one owner.

    Attributes:
        parent: the newest weights, float32.
        losses: mean training losses that devices reported of the round under way.
        loss: their mean in the last round; 0 before there is one.
        refused: updates that were of no use; `trouble` says why the first was.
    """

    def __init__(self, experiment: Experiment, family: Family, layouts: Sequence[Layout]) -> None:
        """Begin with the family's first weights.

        Args:
            experiment: what is simulated.
            family: whose server this is.
            layouts: of all structures.
        """
        self.experiment = experiment
        self.parent = family.weights
        self.loss = 0.0
        self.losses: list[float] = []
        self.refused = 0
        self.trouble = ""
        self._views = {kind: self._view(kind, index, layouts[kind]) for kind, index in family.views.items()}
        self._layout = family.layout
        self._number = 0
        self._largest = largest_weight(experiment.precision)
        self._parts = tuple(place for _, place in family.layout.slices())
        self._sum: Aggregator = collector(experiment.plan, family.layout.size, self._parts, race=False)
        self._optimizer = begin(experiment.plan.optimizer, family.layout.size)

    def _view(self, kind: int, index: Index | None, layout: Layout) -> _View:
        shared = layout.shared()
        sent = shared if index is None else index if shared is None else index[shared]
        size = layout.size if shared is None else len(shared)
        return _View(index, sent, size, Downlink(self.experiment, layout, _part(self.parent, index), kind))

    def publish(self, number: int) -> Mapping[int, Published]:
        """Open a round; what the devices of each structure get."""
        self._number = number
        plan, seed = self.experiment.plan, self.experiment.seed
        self._sum, self.losses = collector(plan, len(self.parent), self._parts, race=is_race(plan, number)), []
        task = msgspec.structs.replace(task_of(plan, number, self.loss), seed=(plan.seed + 1_000_003 * seed) % (1 << 32))
        return {kind: view.downlink.publish(number, task) for kind, view in self._views.items()}

    def scores(self) -> dict[int, float]:
        """What the aggregator thinks of the devices of the round just closed."""
        return {int(device): score for device, score in self._sum.scores().items()}

    def weights(self, kind: int) -> Float32:
        """The newest weights as the devices of a structure decode them, float32."""
        return self._views[kind].downlink.weights

    def file_length(self, kind: int) -> int:
        """Bytes of the file of these weights."""
        return self._views[kind].downlink.file_length

    @property
    def pruned(self) -> float:
        """Part of the prunable weights that is gone."""
        return share_gone(self.parent, self._layout)

    def receive(self, kind: int, played: Played, late: int, history: History | None = None, alive: Index | None = None) -> bool:
        """Fold an update into the round; whether it counts.

        Args:
            kind: structure of the device.
            played: with an update.
            late: rounds since the one it was trained for.
            history: that it was coded against; None if it was coded plainly.
            alive: the coordinates that it is about, among those that updates carry; None for all.
        """
        view, plan = self._views[kind], self.experiment.plan
        try:
            update = decode(played.data, view.size if alive is None else len(alive), history).within(alive, view.size)
            check_range(self.parent, view.sent, update, plan, self._number, self._largest)
            weight = weight_of(plan, self._number, samples=played.samples, late=late, loss=played.loss_after)
            self._sum.add(update, view.sent, weight, key=f"w{kind}", device=f"{played.number:07d}")
        except UpdateError as error:
            self.refuse(str(error))
            return False
        self.losses.append(played.loss_after)
        return True

    def refuse(self, reason: str) -> None:
        """Count an update that is of no use."""
        self.refused += 1
        self.trouble = self.trouble or reason

    def close(self, root: Float32 | None = None) -> int:
        """Aggregate the round; how many updates counted.

        Args:
            root: what the server has learned from its own examples, for the aggregator `root-set`.
        """
        if not self._sum.updates:
            return 0
        plan, loss = self.experiment.plan, mean_loss(self.losses)
        when, race = Moment(self._number, plan.rounds, loss), is_race(plan, self._number)
        moved, optimizer = outcome(self.parent, self._sum, self._optimizer, plan, self._layout, when, race=race, root=root)
        if self.follow(moved):
            self._optimizer = optimizer
        self.loss = loss
        return self._sum.updates

    def follow(self, parent: Float32) -> bool:
        """Take these weights for the next round, without what is gone; whether they can be written."""
        parent = marked(parent, gone(self.parent, self._layout))
        removed, views = gone(parent, self._layout), self._views.values()
        try:
            ready = [(one.downlink, one.downlink.next(_part(parent, one.index), _part(removed, one.index))) for one in views]
        except ModelError as error:
            self.trouble = self.trouble or str(error)
            return False
        for downlink, step in ready:
            downlink.take(step)
        self.parent = parent
        return True


T = TypeVar("T", np.float32, np.bool_)


def _part(parent: npt.NDArray[T], index: Index | None) -> npt.NDArray[T]:
    return parent if index is None else parent[index]
