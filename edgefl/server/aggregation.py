"""A training's aggregator and server optimiser, and how they survive the server: the shell around `edgefl.aggregate`.

Model: updates are folded into the open round's aggregator. `step` says what the round would come to and changes nothing; when the
ledger has closed the round, `closed` takes the step over and begins the next round. The optimiser's state is a blob that the next
round's row names, so that a server that is killed between the two begins the same round with the same state.
"""

from dataclasses import dataclass
from functools import partial

from edgefl.aggregate.closing import collector, outcome
from edgefl.aggregate.contract import Aggregator
from edgefl.aggregate.server import ServerState, begin, read_state
from edgefl.codec.sparsify import Sparse
from edgefl.compress.magnitude import Moment
from edgefl.layout import Float32, Index, Layout
from edgefl.plan import Plan
from edgefl.store.blobs import BlobStore


@dataclass(frozen=True, slots=True)
class Step:
    """What a round would come to: the weights, the optimiser's state after it, and a score for each device."""

    parent: Float32
    state: ServerState
    scores: dict[str, float]


class Aggregation:
    """Of one training. Owned by the server's one thread.

    Args:
        plan: of the training.
        layout: of the parent.
        blobs: where the optimiser's state is.
        state: SHA-256 of the state that the open round begins with; None for a new one.
        race: whether the open round is a jump-start.

    Raises:
        StoreError: the state cannot be read.
    """

    def __init__(self, plan: Plan, layout: Layout, blobs: BlobStore, state: bytes | None, *, race: bool = False) -> None:
        size = layout.size
        self._collector = partial(collector, plan, size, [place for _, place in layout.slices()])
        self._plan = plan
        self._layout = layout
        self._blobs = blobs
        empty = begin(plan.optimizer, size)
        self._state = empty if state is None else read_state(blobs.get(state), plan.optimizer, size)
        self._race = race
        self._aggregator: Aggregator = self._collector(race=race)

    def add(self, device: str, variant: str, update: Sparse, index: Index | None, weight: float) -> None:
        """Fold an update into the open round. Raises UpdateError when it does not fit."""
        self._aggregator.add(update, index, weight, key=variant, device=device)

    def step(self, parent: Float32, when: Moment) -> Step:
        """What the round comes to, from these weights, without what is pruned now.

        What is not finite is for the caller to notice.
        """
        moved, state = outcome(parent, self._aggregator, self._state, self._plan, self._layout, when, race=self._race)
        return Step(moved, state, dict(self._aggregator.scores()))

    def store(self, step: Step) -> bytes | None:
        """Write the state after a step; its SHA-256, None if there is nothing to remember. Raises StoreError."""
        data = step.state.encode()
        return self._blobs.put(data) if data else None

    def closed(self, state: ServerState) -> None:
        """The round has been closed with this state; the next one begins."""
        self._state = state
        self._race, self._aggregator = False, self._collector(race=False)

    @property
    def state(self) -> ServerState:
        """Of the optimiser, as the open round began with it."""
        return self._state
