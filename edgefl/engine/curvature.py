"""How sharply a device's own loss bends at the round's weights: two steps of the engine, taken and thrown away.

Model: a step of plain SGD is a gradient, so that two steps on one batch give two gradients at two points, and their difference
the smoothness along the way (`edgefl.rates.smoothness`). It costs two steps of a round's hundreds.

Rule: the engine has the vector again that it was measured at.
"""

import math

import numpy as np

from edgefl.engine.contract import Engine
from edgefl.errors import EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.rates import CURVATURE_LEAST, smoothness
from edgefl.recipe import Recipe


def curvature(
    engine: Engine,
    recipe: Recipe,
    vector: Float32,
    batch: Examples,
    rate: float,
    *,
    kept: Float32 | None,
    mutual: float = 1.0,
) -> float:
    """L of the batch's loss along its gradient, at least 0, infinite if a step leaves the finite numbers.

    The steps are short, `CURVATURE_LEAST` of the rate: a long one would measure not the loss here but the plain beyond its walls.

    Args:
        engine: its parameters are `vector` afterwards.
        recipe: of the engine's graphs.
        vector: where to measure, float32, in the engine's layout.
        batch: at most as many examples as the training graph has rows, so that a pass is one step.
        rate: that the answer is to limit.
        kept: of the training that it is for (`Engine.train`): what is gone cannot move there, and its gradient says nothing.
        mutual: of the training that it is for.

    Raises:
        EngineError: the recipe's step is not plain SGD.
        DataError: the examples do not fit the model, or there are none.
    """
    if recipe.optimizer != "sgd":
        raise EngineError(
            "the curvature can be measured with plain SGD only", found=recipe.optimizer, remedy="Choose another rate in the plan"
        )
    points, short = [vector], rate * CURVATURE_LEAST
    engine.set_vector(vector)
    try:
        for _ in range(2):
            engine.train(batch, epochs=1, learning_rate=short, rng=np.random.default_rng(0), mutual=mutual, kept=kept)
            points.append(engine.vector())
    except EngineError:  # diverged; if the runtime has failed, training will say so
        return math.inf
    finally:
        engine.set_vector(vector)
    places = [place for tensor, place in engine.layout.slices() if tensor.role == "trained"]
    start, first, second = (np.concatenate([point[place] for place in places]) for point in points)
    return smoothness(start, first, second, short)
