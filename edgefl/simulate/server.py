"""The simulated server: what the live one does with updates and weights, without ledger, files and clock.

Model: for each round it publishes the weights (encoded and decoded as devices fetch them) and the task; it decodes updates, folds
them with their staleness into the plan's aggregator, and makes the next weights of the result.

Rules: as in `edgefl.server.training`: an update that would make a weight too large to be written is refused; weights that cannot
be written are given up, and the round closes with those that it began with.
"""

import msgspec
import numpy as np

from edgefl.aggregate.mean import polynomial_staleness
from edgefl.aggregate.robust import make
from edgefl.aggregate.server import advance, begin
from edgefl.codec.history import History
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import decode
from edgefl.errors import ModelError, UpdateError
from edgefl.layout import Float32, Layout
from edgefl.participation import mean_loss
from edgefl.server.variants import largest_weight
from edgefl.simulate.downlink import Downlink, Published
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.jobs import Played
from edgefl.wire.tasks import task_of


class Server:
    """One training's server. An accumulator with one owner.

    Attributes:
        parent: the newest weights, float32.
        loss: mean training loss that the devices reported of the last round; 0 before there is one.
        refused: updates that were of no use; `trouble` says why the first was.
    """

    def __init__(self, experiment: Experiment, layout: Layout, weights: Float32) -> None:
        """Begin with these weights."""
        self.experiment = experiment
        self.parent = weights
        self.loss = 0.0
        self.refused = 0
        self.trouble = ""
        self._shared = layout.shared()
        self._size = layout.size if self._shared is None else len(self._shared)
        self._largest = largest_weight(experiment.precision)
        self._losses: list[float] = []
        self._parts = tuple(place for _, place in layout.slices())
        self._sum = make(experiment.plan, layout.size, self._parts)
        self._optimizer = begin(experiment.plan.optimizer, layout.size)
        self._downlink = Downlink(experiment, layout, weights)

    def publish(self, number: int) -> Published:
        """Open a round."""
        self._sum, self._losses = make(self.experiment.plan, len(self.parent), self._parts), []
        plan, seed = self.experiment.plan, self.experiment.seed
        task = msgspec.structs.replace(task_of(plan, number, self.loss), seed=(plan.seed + 1_000_003 * seed) % (1 << 32))
        return self._downlink.publish(number, task)

    def scores(self) -> dict[int, float]:
        """What the aggregator thinks of the devices of the round just closed."""
        return {int(device): score for device, score in self._sum.scores().items()}

    @property
    def weights(self) -> Float32:
        """The newest weights as devices decode them, float32."""
        return self._downlink.weights

    def receive(self, played: Played, late: int, history: History | None) -> bool:
        """Fold an update into the round; whether it counts.

        Args:
            played: with an update.
            late: rounds since the one it was trained for.
            history: that it was coded against; None if it was coded plainly.
        """
        try:
            update = decode(played.data, self._size, history)
            self._check_range(update)
            weight = played.samples * polynomial_staleness(late)
            self._sum.add(update, self._shared, weight, key="w", device=f"{played.number:07d}")
        except UpdateError as error:
            self.refuse(str(error))
            return False
        self._losses.append(played.loss_after)
        return True

    def refuse(self, reason: str) -> None:
        """Count an update that is of no use."""
        self.refused += 1
        self.trouble = self.trouble or reason

    def _check_range(self, update: Sparse) -> None:
        places = update.positions if self._shared is None else self._shared[update.positions]
        moved = update.values.astype(np.float64) * self.experiment.plan.server_rate
        if float(np.abs(self.parent[places] + moved).max()) > self._largest:
            raise UpdateError("it makes a weight too large: training has diverged")

    def close(self, root: Float32 | None = None) -> int:
        """Aggregate the round; how many updates counted.

        Args:
            root: what the server has learned from its own examples, for the aggregator `root-set`.
        """
        if not self._sum.updates:
            return 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite cannot be written
            aggregate = self._sum.result(root)
            parent, optimizer = advance(self.parent, aggregate, self._optimizer, self.experiment.plan.server_rate)
        try:
            self._downlink.follow(parent)
            self.parent, self._optimizer = parent, optimizer
        except ModelError as error:
            self.trouble = self.trouble or str(error)
        self.loss = mean_loss(self._losses)
        return self._sum.updates
