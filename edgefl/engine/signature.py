"""The inputs of a training step's graph, in order: what the exporter declares and the portable engine binds.

    tensors of the layout...  x  y  w  lr  [c1 c2]  [NAME.velocity ...]  [mu  NAME.start ...]  [mutual]

`c1`, `c2` are AdamW's bias corrections; the optimiser's state has a tensor for every trained parameter; `mu` and the round's
starting point are there if the recipe can be proximal, `mutual`, the weight of what exits learn of each other, if a round can
choose it. Outputs are `loss`, then, for each tensor that is not frozen and for each
tensor of the state, its name followed by `.new`. No name can be taken twice: a parameter's name plus a dot and a word would be
a parameter inside a parameter.
"""

from edgefl.layout import Layout, Tensor
from edgefl.recipe import STATES, Recipe

SUFFIX_NEW = ".new"
"""A tensor's name with this names the output that replaces it."""
SUFFIX_START = ".start"
SCALARS = frozenset({"lr", "c1", "c2", "mu", "mutual"})
RESERVED = SCALARS | {"x", "y", "w", "loss", "logits"}
"""Names that no parameter can have."""


def state_layout(layout: Layout, recipe: Recipe) -> tuple[Tensor, ...]:
    """The optimiser's state as named tensors, in order; empty for plain SGD."""
    return tuple(Tensor(f"{t.name}.{kind}", t.shape) for kind in STATES[recipe.optimizer] for t in layout.trained)


def start_layout(layout: Layout, recipe: Recipe) -> tuple[Tensor, ...]:
    """The parameters that the proximal term pulls towards; empty without it."""
    return tuple(Tensor(t.name + SUFFIX_START, t.shape) for t in layout.trained) if recipe.proximal else ()


def step_inputs(layout: Layout, recipe: Recipe) -> tuple[str, ...]:
    """Names of all inputs."""
    return (
        *(t.name for t in layout.tensors),
        *("x", "y", "w", "lr"),
        *(("c1", "c2") if recipe.optimizer == "adamw" else ()),
        *(t.name for t in state_layout(layout, recipe)),
        *(("mu",) if recipe.proximal else ()),
        *(t.name for t in start_layout(layout, recipe)),
        *(("mutual",) if recipe.mutual else ()),
    )


def step_outputs(layout: Layout, recipe: Recipe) -> tuple[str, ...]:
    """Names of all outputs."""
    replaced = (*(t for t in layout.tensors if t.role != "frozen"), *state_layout(layout, recipe))
    return ("loss", *(t.name + SUFFIX_NEW for t in replaced))
