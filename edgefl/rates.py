"""Learning rates, and what else rises or falls from round to round: a plan's numbers in a given round, and on a device. Pure.

Model: the server writes into each round's task what depends on the round alone: the decayed learning rate, the sparsity, and how
much exits learn of each other, which have little to teach at first. A device may then adapt the rate to itself, by the plan's
`rate`:

* `fixed`: not at all.
* `loss`: in proportion to its own last training loss against the fleet's mean; who is behind takes larger steps.
* `curvature`: at most the inverse of the local smoothness L of its own loss. Two gradients at two points give

        L ~ |g2 - g1| / |w2 - w1|

  and gradient descent with a rate up to 1/L decreases an L-smooth loss (Nesterov 2004, section 1.2.3; estimated in this way by
  Malitsky and Mishchenko, Adaptive Gradient Descent without Descent, ICML 2020, https://arxiv.org/abs/1910.09529). A step of
  plain SGD *is* a gradient, `g = (w - w') / rate`, so two one-batch steps on the same batch are all the probe it takes.

Rules: every adaptation is bounded, so that a strange loss or a flat spot cannot freeze or blow up a device; without the numbers
that it needs, the rate is the task's.
"""

import math

import numpy as np

from edgefl.layout import Float32
from edgefl.plan import Plan

SMALLEST_RATE = 1e-9
"""A decayed rate does not fall below this: a task's rate is above 0."""
WARMUP_SPARSITY = 0.25
"""What DGC's warm-up begins with (Lin et al., ICLR 2018, https://arxiv.org/abs/1712.01887, section 3.3)."""
LEAST, MOST = 0.5, 2.0
"""Bounds of the factor that a loss puts on the rate."""
CURVATURE_LEAST = 1.0 / 64.0
"""Smallest factor that the curvature puts on the rate; the largest is 1."""


def learning_rate_at(plan: Plan, round_of_training: int) -> float:
    """The rate that the task of this round carries: the plan's, times `decay` for each round before.

    Args:
        plan: of the training.
        round_of_training: counts from 1 in each training.
    """
    return max(min(plan.learning_rate, SMALLEST_RATE), plan.learning_rate * plan.decay ** max(0, round_of_training - 1))


def sparsity_at(plan: Plan, round_of_training: int) -> float:
    """The sparsity of this round: over `warmup` rounds it falls by equal factors from 1/4 to the plan's, in (0, 1].

    Args:
        plan: of the training; one whose sparsity is 1/4 or more has no warm-up.
        round_of_training: counts from 1 in each training.
    """
    done = max(0, round_of_training - 1)
    if done >= plan.warmup or plan.sparsity >= WARMUP_SPARSITY:
        return plan.sparsity
    return float(WARMUP_SPARSITY * (plan.sparsity / WARMUP_SPARSITY) ** (done / plan.warmup))


def mutual_at(plan: Plan, round_of_training: int) -> float:
    """The weight of what exits learn of each other, in (0, 1]: over `ramp` rounds it rises to 1 as half a Gaussian.

    That is `exp(-5 * (1 - t)^2)` with t from 0 to 1 (Laine and Aila, ICLR 2017, https://arxiv.org/abs/1610.02242, section 2.1).

    Args:
        plan: of the training.
        round_of_training: counts from 1 in each training.
    """
    done = max(0, round_of_training - 1)
    return 1.0 if done >= plan.ramp else math.exp(-5.0 * (1.0 - done / plan.ramp) ** 2)


def rate_by_loss(rate: float, own_loss: float, mean_loss: float) -> float:
    """The rate times `own_loss / mean_loss` within the bounds; the rate itself if either is not a positive number."""
    if not (math.isfinite(own_loss) and math.isfinite(mean_loss) and own_loss > 0.0 and mean_loss > 0.0):
        return rate
    return rate * min(MOST, max(LEAST, own_loss / mean_loss))


def rate_by_curvature(rate: float, curvature: float) -> float:
    """The rate, but at most `1 / curvature`, and at least 1/64 of the rate.

    Args:
        rate: of the task.
        curvature: L, from `smoothness`; 0, or what is no number, is a flat spot that limits nothing.
    """
    if math.isnan(curvature) or curvature <= 0.0:
        return rate
    return max(rate * CURVATURE_LEAST, min(rate, 1.0 / curvature))


def smoothness(start: Float32, first: Float32, second: Float32, rate: float) -> float:
    """L along the gradient, from two steps of plain SGD on the same batch.

    Args:
        start: the parameters before, float32, shape `(n,)`; only those that a gradient changes.
        first: after one step.
        second: after a further step.
        rate: of both steps, positive.

    Returns:
        `|g2 - g1| / |w2 - w1|`, at least 0: infinite if a step left the finite numbers, 0 if the first gradient was zero.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        one = start.astype(np.float64) - first
        two = first.astype(np.float64) - second
        moved, change = float(np.linalg.norm(one)), float(np.linalg.norm(two - one))
    if not (math.isfinite(moved) and math.isfinite(change)):
        return math.inf
    return change / (rate * moved) if moved > 0.0 else 0.0
