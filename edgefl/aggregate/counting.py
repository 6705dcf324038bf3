"""How much one update counts for in a round, and which is too large to count: the same for the live server and for simulations.

Model: an update counts as much as the examples that it was trained on, less the later it comes (`aggregate.mean`); in a
jump-start (`edgefl.jumpstart`) all that counts is its training loss.

Rules: pure. An update that would by itself make a weight too large to be written is refused. A mean of updates that pass is
within the range too, because it is a convex combination of what each would come to.
"""

import numpy as np

from edgefl.aggregate.mean import polynomial_staleness
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.jumpstart import is_race, merit, rate_at
from edgefl.layout import Float32, Index
from edgefl.plan import Plan


def weight_of(plan: Plan, round_of_training: int, *, samples: int, late: int, loss: float) -> float:
    """The weight of an update in the round's aggregate, positive.

    Args:
        plan: of the training.
        round_of_training: in which it counts, from 1 in each training.
        samples: examples that it was trained on.
        late: rounds since the one that it was trained for.
        loss: mean training loss of its last epoch, finite.
    """
    return merit(loss) if is_race(plan, round_of_training) else samples * polynomial_staleness(late)


def check_range(parent: Float32, sent: Index | None, update: Sparse, plan: Plan, round_of_training: int, largest: float) -> None:
    """Refuse an update that would by itself make a weight too large to be written.

    Args:
        parent: float32, the weights before the round.
        sent: int64, the parent coordinate of each coordinate of the update; None if they are the same.
        update: with at least one position.
        plan: of the training.
        round_of_training: in which it is to count, from 1 in each training.
        largest: magnitude up to which a weight can be written.

    Raises:
        UpdateError: it would.
    """
    places = update.positions if sent is None else sent[update.positions]
    moved = parent[places].astype(np.float64) + update.values.astype(np.float64) * rate_at(plan, round_of_training)
    if (found := float(np.abs(moved).max())) > largest:
        raise UpdateError("it makes a weight too large: training has diverged", found=f"{found:g}")
