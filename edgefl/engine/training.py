"""The loop that both engines train in: epochs of mini-batches, with the loss watched.

An engine brings a `step` that trains on the rows it is given and returns their mean loss; everything else is here, so that
both engines see the same batches in the same order and report the same numbers.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgefl.engine.contract import Trained, batches
from edgefl.errors import DataError, EngineError
from edgefl.recipe import Recipe

REMEDY_DIVERGED = "Lower the learning rate of the training plan"

Step = Callable[[npt.NDArray[np.int64]], float]


def run_epochs(step: Step, count: int, batch: int, epochs: int, rng: np.random.Generator) -> Trained:
    """Train `epochs` passes over `count` examples.

    Args:
        step: trains on the examples at these rows (at most `batch`), returns their mean loss before the update.
        count: number of examples.
        batch: rows of a full mini-batch.
        epochs: at least 1.
        rng: of the shuffling.

    Raises:
        DataError: there are no examples.
        EngineError: the loss is no longer finite.
    """
    if count == 0:
        raise DataError("there are no examples to train on", remedy="Give the device's source some data")
    sums = [0.0] * epochs
    steps, full, fastest = 0, min(batch, count), math.inf
    for epoch, rows in batches(count, batch, epochs, rng):
        began = time.perf_counter()
        loss = step(rows)
        if len(rows) == full:
            fastest = min(fastest, time.perf_counter() - began)
        steps += 1
        if not math.isfinite(loss):
            raise EngineError(
                f"training diverged in step {steps}", expected="a finite loss", found=f"{loss}", remedy=REMEDY_DIVERGED
            )
        sums[epoch] += loss * len(rows)
    return Trained(steps, sums[0] / count, sums[-1] / count, fastest)


def check_proximal(recipe: Recipe, proximal: float) -> None:
    """Check that a version can be trained with this weight of the proximal term.

    Raises:
        EngineError: it was pushed without the term.
    """
    if proximal > 0.0 and not recipe.proximal:
        raise EngineError(
            "this version has no proximal term",
            expected="proximal 0 in the plan",
            found=f"{proximal:g}",
            remedy="Push the model again with --proximal",
        )


def check_mutual(recipe: Recipe, mutual: float) -> None:
    """Check that a version can be trained with this weight of what exits learn of each other.

    Raises:
        EngineError: it was pushed with weight 1, or its loss has no such term.
    """
    if mutual != 1.0 and not recipe.mutual:
        raise EngineError(
            "this version's exits do not learn of each other with a weight that can be chosen",
            expected="a plan without ramp",
            found=f"the weight {mutual:g}",
            remedy="Push the model again with --loss self-distillation",
        )


def check_finite(vector: npt.NDArray[np.float32]) -> None:
    """Check the parameters after training, whose last update no loss has seen.

    Raises:
        EngineError: a value is NaN or infinite.
    """
    if not np.isfinite(vector).all():
        raise EngineError("training diverged", expected="finite parameters", found="NaN or infinity", remedy=REMEDY_DIVERGED)
