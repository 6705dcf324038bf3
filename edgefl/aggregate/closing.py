"""What a round is collected in and what it comes to: the one rule of the live server and of simulations. Pure.

Model: in a jump-start (`edgefl.jumpstart`) the best update is taken as it is; in any other round the aggregate goes through the
server's optimiser. Either way the plan's pruning has the last word.
"""

from collections.abc import Sequence

import numpy as np

from edgefl.aggregate.best import Best
from edgefl.aggregate.contract import Aggregator
from edgefl.aggregate.robust import make
from edgefl.aggregate.server import ServerState, advance
from edgefl.compress.magnitude import Moment, after_round
from edgefl.layout import Float32, Layout
from edgefl.plan import Plan


def collector(plan: Plan, size: int, parts: Sequence[slice], *, race: bool) -> Aggregator:
    """An empty aggregator for a round.

    Args:
        plan: of the training.
        size: coordinates of the parent.
        parts: places of its tensors.
        race: whether the round is a jump-start.
    """
    return Best(size) if race else make(plan, size, tuple(parts))


def outcome(
    parent: Float32,
    aggregator: Aggregator,
    state: ServerState,
    plan: Plan,
    layout: Layout,
    when: Moment,
    *,
    race: bool,
    root: Float32 | None = None,
) -> tuple[Float32, ServerState]:
    """The parent after a round, and the optimiser's state. What is not finite is for the caller to notice.

    Args:
        parent: float32, shape `(layout.size,)`, before the round.
        aggregator: with the round's updates.
        state: of the optimiser before the round.
        plan: of the training.
        layout: of the parent.
        when: for the pruning.
        race: whether the round is a jump-start.
        root: what the server has learned from its own examples, for the aggregator `root-set`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        aggregate = aggregator.result(root)
        if race:
            moved = parent + aggregate
        else:
            covered = aggregator.covered() if state.vectors else None
            moved, state = advance(parent, aggregate, state, plan.server_rate, covered)
    return after_round(parent, moved, layout, plan.pruning, when), state
