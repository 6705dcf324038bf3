"""What a plan asks of the devices in a given round, and what a device makes of it.

Rule: the live server and the simulation ask the same, boards and virtual devices do the same.
"""

from edgefl.codec.scheme import Scheme
from edgefl.jumpstart import FINE, WHOLE, is_race
from edgefl.plan import Plan
from edgefl.rates import learning_rate_at, mutual_at, sparsity_at
from edgefl.wire.rounds import Task

LONGEST_CONTEXT = 32
"""Rounds that an update may be late if it is to be coded with the history: the server keeps the weights of as many."""


def keeps_history(plan: Plan) -> bool:
    """Whether updates are coded with what both ends know. A plan that lets updates be very late would keep too many weights."""
    return plan.context and plan.staleness <= LONGEST_CONTEXT


def task_of(plan: Plan, round_of_training: int, loss: float = 0.0) -> Task:
    """The part of a plan that concerns devices.

    Args:
        plan: of the training.
        round_of_training: counts from 1 in each training.
        loss: mean training loss that devices reported of the round before; 0 if it is not known.
    """
    race = plan.jump_start if is_race(plan, round_of_training) else None
    return Task(
        epochs=race.epochs if race else plan.epochs,
        learning_rate=learning_rate_at(plan, round_of_training),
        sparsity=WHOLE if race else sparsity_at(plan, round_of_training),
        bits=FINE if race else plan.bits,
        fraction=plan.fraction,
        seed=plan.seed,
        proximal=plan.proximal,
        by_layer=plan.by_layer,
        sampled=plan.sampled,
        rotated=plan.rotated,
        context=keeps_history(plan),
        price=plan.price,
        correction=plan.correction,
        rate=plan.rate,
        loss=loss,
        biased=race is None and plan.sampling == "loss",
        mutual=mutual_at(plan, round_of_training),
    )


def scheme_of(task: Task) -> Scheme:
    """How a task wants updates coded. Raises UpdateError when it wants the impossible."""
    return Scheme(
        sparsity=task.sparsity,
        bits=task.bits,
        by_layer=task.by_layer,
        sampled=task.sampled,
        rotated=task.rotated,
        price=task.price,
        correction=task.correction,
    )
