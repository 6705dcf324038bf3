"""Models of different families as one: the weighted average of what they believe, and soft labels made of it.

Model: families have no coordinate in common, so they meet in their outputs. Member m gives example i the probabilities `p[m, i]`;
the ensemble's are

    q[i, c]  =  sum over m of w[m, c] * p[m, i, c],   divided by its sum over c

with one weight for each member and class (Thonglek et al., ICMLA 2020, https://doi.org/10.1109/ICMLA51294.2020.00120, who look
for the weights with a black-box search of 50 trials). Here they are found by projected gradient descent on the logarithmic loss
of labelled examples: the gradient is known, so there is no need to search.

The probabilities are what families teach each other with (ensemble distillation, FedDF: Lin et al., NeurIPS 2020,
https://arxiv.org/abs/2006.07242): `lessons` turns them into labelled rows that the training step of any classifier takes.

Rules: pure float64; a fit never has a larger penalised loss on its examples than the uniform weights have.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.errors import DataError
from edgefl.layout import Float32, Index

Float64 = npt.NDArray[np.float64]

STRENGTH = 10.0
"""Of the pull towards uniform weights, in examples: few labelled examples must not silence a member. With 25 to 400 of them, of
digits and of chest X-rays, 10 was the best or near it of 1, 3, 10, 30 and 100."""
STEPS = 300
SMALLEST = 1e-12
LEAST = 0.02
"""Soft labels below it are left out of a lesson: each costs a row of a training step."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Soft labels as weighted rows: row j says that example `rows[j]` has the label `labels[j]` with the weight `weights[j]`.

    The cross-entropy of an example's rows, weighted so, is that of its soft label, and so is the gradient.
    """

    rows: Index
    labels: Index
    weights: Float32


def probabilities(logits: Float32) -> Float64:
    """Softmax over the last axis; same shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    powers = np.exp(shifted)
    found: Float64 = powers / powers.sum(-1, keepdims=True)
    return found


def uniform(members: int, classes: int) -> Float64:
    """The weights that make the ensemble the plain average, shape `(members, classes)`."""
    return np.full((members, classes), 1.0 / members)


def pooled(beliefs: Float64, weights: Float64) -> Float64:
    """The ensemble's probabilities, shape `(n, classes)`.

    Args:
        beliefs: probabilities, shape `(members, n, classes)`.
        weights: not negative, shape `(members, classes)`.
    """
    scores = np.einsum("mnc,mc->nc", beliefs, weights) + SMALLEST
    found: Float64 = scores / scores.sum(1, keepdims=True)
    return found


def log_loss(beliefs: Float64, labels: Index) -> float:
    """Mean negative logarithm of what the labels were given, of probabilities of shape `(n, classes)`."""
    return float(-np.log(np.maximum(beliefs[np.arange(len(labels)), labels], SMALLEST)).mean())


def accuracy(beliefs: Float64, labels: Index) -> float:
    """Share of examples whose largest probability is the label's, in [0, 1]."""
    return float((beliefs.argmax(1) == labels).mean())


def fitted(beliefs: Float64, labels: Index, *, strength: float = STRENGTH) -> Float64:
    """The weights that make the ensemble's logarithmic loss small, shape `(members, classes)`, not negative.

    Args:
        beliefs: probabilities, shape `(members, n, classes)`.
        labels: int64, shape `(n,)`, in [0, classes).
        strength: of the pull towards uniform weights, in examples.

    Raises:
        DataError: there are no examples, or the shapes do not belong together.
    """
    if beliefs.ndim != 3 or not len(labels) or beliefs.shape[1] != len(labels) or int(labels.max()) >= beliefs.shape[2]:
        raise DataError(
            "an ensemble cannot be weighted",
            expected="probabilities of shape (members, n, classes) and n labels, n from 1",
            found=f"shapes {beliefs.shape} and {labels.shape}",
        )
    weights, step = uniform(beliefs.shape[0], beliefs.shape[2]), 1.0
    value, slope = _penalised(beliefs, labels, weights, strength)
    for _ in range(STEPS):
        moved = np.maximum(weights - step * slope, 0.0)
        new, new_slope = _penalised(beliefs, labels, moved, strength)
        # Armijo's rule, with the gradient of the projected step.
        if new > value + 0.1 * float((slope * (moved - weights)).sum()):
            step /= 2.0
            continue
        done = value - new < 1e-9
        weights, value, slope, step = moved, new, new_slope, step * 1.5
        if done:
            break
    return weights


def _penalised(beliefs: Float64, labels: Index, weights: Float64, strength: float) -> tuple[float, Float64]:
    """Mean logarithmic loss plus the penalty, and the gradient by the weights."""
    count = len(labels)
    scores = np.einsum("mnc,mc->nc", beliefs, weights) + SMALLEST
    totals, rows = scores.sum(1), np.arange(count)
    off = weights - 1.0 / len(weights)
    value = float((np.log(totals) - np.log(scores[rows, labels])).mean() + strength / count * np.square(off).sum())
    by_score = np.repeat((1.0 / totals)[:, None], scores.shape[1], axis=1)
    by_score[rows, labels] -= 1.0 / scores[rows, labels]
    slope = np.einsum("mnc,nc->mc", beliefs, by_score) / count + 2.0 * strength / count * off
    return value, slope


def lessons(beliefs: Float64, least: float = LEAST) -> Lessons:
    """Soft labels as weighted rows; what is left of an example's weights sums to 1.

    Args:
        beliefs: probabilities, shape `(n, classes)`.
        least: smaller probabilities are left out; the largest never is.
    """
    kept = np.where((beliefs >= least) | (beliefs == beliefs.max(1, keepdims=True)), beliefs, 0.0)
    kept /= kept.sum(1, keepdims=True)
    rows, labels = np.nonzero(kept)
    return Lessons(rows.astype(np.int64), labels.astype(np.int64), kept[rows, labels].astype(np.float32))
