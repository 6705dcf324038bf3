"""What training a structure, or answering with it, costs a board, estimated from the shapes of its layers. Pure.

Model, per step of `batch` rows:

    memory = BASE + 4 bytes * (vector + gradient + vectors of the optimiser + residual and copies, parameters each)
                  + 4 bytes * batch * activations that the backward pass keeps
    step   = 3 multiply-adds of the forward pass: itself, the gradient of the inputs, that of the weights

and of a structure that only answers, `ROWS` at once, with no step at all:

    memory = BASE + 4 bytes * (vector and the file's values + rows * activations, which a forward pass does not all hold at once)

Rules: these are estimates to compare structures with, not promises: what a board really takes is measured elsewhere. A frozen
parameter has neither gradient nor residual, and the third of the work that its own gradient takes is saved; before the first
trained layer nothing goes backward at all.
"""

from dataclasses import dataclass

from edgefl.compress.planner import Cost
from edgefl.layout import Layout
from edgefl.recipe import STATES, Recipe

BASE = 64 << 20
"""Bytes of a training process without a model: the interpreter, numpy and ONNX Runtime."""
FLOAT = 4
ROWS = 64
"""Examples that a device computes at once (`edgefl.engine.inference`)."""
SPEED = 1e9
"""Multiply-adds per second of one core of a Cortex-A53 class board; a round figure, for comparisons."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one example takes.

    Attributes:
        activations: values that the backward pass keeps.
        reuse: how often each tensor of the layout is used, as (name, times): 1 in a dense layer, once for each position of its
            output in a convolution; tensors that are missing take no multiplications worth counting.
    """

    activations: int
    reuse: tuple[tuple[str, int], ...]

    def multiplications(self, layout: Layout, batch: int) -> int:
        """Multiply-adds of a training step on `batch` rows."""
        times = dict(self.reuse)
        total, reached = 0, False
        for tensor in layout.tensors:
            reached = reached or tensor.role == "trained"
            passes = 3 if tensor.role == "trained" else 2 if reached else 1
            total += passes * tensor.size * times.get(tensor.name, 0)
        return total * batch


def training_cost(storage: int, layout: Layout, work: Work, batch: int, recipe: Recipe) -> Cost:
    """The cost of a structure.

    Args:
        storage: bytes on disk, see `edgefl.compress.budget`.
        layout: of the structure.
        work: of one example.
        batch: rows of a step.
        recipe: its optimiser keeps vectors of its own.
    """
    trained = sum(t.size for t in layout.tensors if t.role == "trained")
    values = 2 * layout.size + trained * (2 + len(STATES[recipe.optimizer])) + batch * work.activations
    return Cost(storage, BASE + FLOAT * values, 1e3 * work.multiplications(layout, batch) / SPEED)


def answering_cost(storage: int, layout: Layout, work: Work) -> Cost:
    """The cost of a structure on a board that does not train; storage and work as above."""
    return Cost(storage, BASE + FLOAT * (2 * layout.size + ROWS * work.activations))
