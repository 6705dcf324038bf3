"""Jump-start: before the fleet averages anything, a few quick devices train alone, and the fleet begins with the best of them.

Model (FedLTN: Mugunthan et al., ECCV 2022, LNCS 13672, pp. 69-85): the first round of a training is a race. Its task asks for
many epochs and for whole updates. It closes with the first few, of devices that are capable enough to be first, and what comes
later is refused: slow devices begin with the second round. Of those that came in time the one with the least training loss is
believed, alone, and its update is taken as it is, past the server's optimiser.

Rule: pure. Without a jump-start the first round is as any other.
"""

import math

from edgefl.plan import Plan

WHOLE, FINE = 1.0, 8
"""Sparsity and bits of an update in the race: it is sent once and has no successor that could bring the rest."""


def is_race(plan: Plan, round_of_training: int) -> bool:
    """Whether a round, counted from 1 in each training, is the jump-start."""
    return plan.jump_start is not None and round_of_training == 1


def cohort_at(plan: Plan, round_of_training: int) -> int:
    """Updates that close a round at once."""
    return plan.jump_start.devices if plan.jump_start and round_of_training == 1 else plan.cohort


def quorum_at(plan: Plan, round_of_training: int) -> int:
    """Updates that are enough at the deadline."""
    return min(plan.quorum, cohort_at(plan, round_of_training))


def rate_at(plan: Plan, round_of_training: int) -> float:
    """Factor on what a round comes to."""
    return 1.0 if is_race(plan, round_of_training) else plan.server_rate


def merit(loss: float) -> float:
    """The weight of an update in the race, positive: the larger the smaller its training loss, which is finite."""
    return math.exp(-min(max(loss, 0.0), 500.0))
