"""Ensemble distillation on the server: a family learns what the ensemble believes of examples that nobody has labelled.

Model (FedDF: Lin et al., NeurIPS 2020, https://arxiv.org/abs/2006.07242): the ensemble's probabilities of the server's examples
are the lesson. Each width of the family learns it from the newest weights, as a device learns from its own data, and what the
widths have learned is averaged over those that have a coordinate (`edgefl.aggregate.mean`): the server is one more device of each
width.
After every pass the widths begin anew from the average, so that a narrow one and the corner of a wide one do not drift apart.

A lesson is taught by the training step that devices use, of any classifier, with a row for each class that an example may be of,
weighted by its probability (`edgefl.aggregate.ensemble.lessons`): no further graph is needed, and no torch.

Rules: a function of its arguments, to the last bit; frozen and personal tensors do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgefl.aggregate.ensemble import Float64, Lessons, lessons, probabilities
from edgefl.aggregate.mean import PartialSum
from edgefl.codec.marks import factors, gone, marked
from edgefl.codec.sparsify import Sparse
from edgefl.engine.contract import Engine
from edgefl.examples import Examples
from edgefl.layout import Float32, Index, Layout
from edgefl.server.variants import Healed


@dataclass(frozen=True, slots=True)
class Pupil:
    """One width of a family.

    Attributes:
        engine: that can train it with weighted examples.
        index: int64, the parent coordinate of each of its own; None if it is the parent.
        weight: positive; how much it counts, for example how many devices have it.
        healed: what its weights are if the push has retrained them.
    """

    engine: Engine
    index: Index | None
    weight: float
    healed: Healed | None = None

    def start(self, parent: Float32) -> Float32:
        """Its weights when those of the parent are these."""
        part = parent if self.index is None else parent[self.index]
        return self.healed.after(part, self.engine.layout) if self.healed else part


def beliefs(engine: Engine, vector: Float32, x: Float32) -> Float64:
    """The probabilities that a classifier with these parameters gives inputs of any shape that it can read, `(n, classes)`."""
    engine.set_vector(vector)
    return probabilities(engine.predict(x))


def taught(
    parent: Float32,
    layout: Layout,
    pupils: Sequence[Pupil],
    x: Float32,
    soft: Float64,
    *,
    epochs: int,
    learning_rate: float,
    seed: Sequence[int],
) -> Float32:
    """The parent after lessons.

    Args:
        parent: float32, shape `(layout.size,)`.
        layout: of the parent; what is gone from it stays gone.
        pupils: at least one.
        x: inputs, first axis the examples, in a shape that the family can read.
        soft: what the ensemble believes of them, shape `(n, classes)`.
        epochs: passes over the examples.
        learning_rate: of the training step's optimiser.
        seed: of the shuffling.

    Raises:
        EngineError: the runtime failed, a loss is no longer finite, or an engine knows no weights of examples.
        DataError: the inputs do not fit the family.
    """
    lesson = lessons(soft)
    examples = Examples(np.ascontiguousarray(x[lesson.rows]), lesson.labels)
    for epoch in range(epochs):
        total = PartialSum(len(parent))
        for number, pupil in enumerate(pupils):
            rng = np.random.default_rng([*seed, epoch, number])
            delta, places = _learned(parent, pupil, examples, lesson, learning_rate, rng)
            total.add(Sparse(np.arange(len(delta), dtype=np.int64), delta, len(delta)), places, pupil.weight, key=f"{number}")
        parent = marked(parent + total.result(), gone(parent, layout))
    return parent


def _learned(
    parent: Float32, pupil: Pupil, examples: Examples, lesson: Lessons, rate: float, rng: np.random.Generator
) -> tuple[Float32, Index | None]:
    """What one pass changes in a pupil, and at which of the parent's coordinates (None: all)."""
    start = pupil.start(parent)
    pupil.engine.set_vector(start)
    left = factors(start, pupil.engine.layout)
    pupil.engine.train(examples, epochs=1, learning_rate=rate, rng=rng, weights=lesson.weights, kept=left)
    delta = pupil.engine.vector() - start
    shared = pupil.engine.layout.shared()
    if shared is None:
        return delta, pupil.index
    return delta[shared], shared if pupil.index is None else pupil.index[shared]
