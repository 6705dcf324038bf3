"""Models with several exits: how their factories are called, and what is checked before anybody relies on it.

Model: an *exit* is a classifier behind some of a model's layers; a model with exits gives the logits of each. What a small board
holds and trains are the layers up to one of the exits, with the exits before it (DepthFL, Kim et al., ICLR 2023,
https://openreview.net/forum?id=pf8RIZTMU58). Averaging matches tensors by name, so a shallower model must be the beginning of the
whole one, in its tensors and in what it computes: both are checked when a factory is loaded.
"""

import torch
from torch import Tensor, nn

from edgefl.errors import ModelError
from edgefl.export.factory import Factory
from edgefl.export.tensors import layout_of, load_vector, set_training, vector_of
from edgefl.layout import nested_index
from edgefl.recipe import LABELLED, Recipe


def with_exits(factory: Factory, whole: int) -> Factory:
    """A factory whose modules know how many exits they have: all of `whole` by default."""

    def built(width: float, exits: int = whole) -> nn.Module:
        module = factory(width, exits=exits)
        module.edgefl_exits = exits  # type: ignore[assignment]  # torch types attributes as tensors or modules
        return module

    return built


def counted_exits(name: str, logits: Tensor, recipe: Recipe) -> tuple[int, int]:
    """Exits and classes of a model that gives these outputs.

    Raises:
        ModelError: they are no logits of exits, or the recipe's loss is not one of labels.
    """
    if not recipe.labels:
        raise ModelError(f"model {name!r} has exits, which classify", expected=" or ".join(LABELLED), found=recipe.loss)
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise ModelError(
            f"model {name!r} does not give the logits of its exits",
            expected="one tensor of shape (examples, exits, classes), at least 2 classes",
            found=f"shape {tuple(logits.shape)}",
            remedy="End its forward with `return torch.stack(logits, 1)`, the first exit first",
        )
    return logits.shape[1], logits.shape[2]


def check_beginning(name: str, exits: int, whole: nn.Module, part: nn.Module, shape: tuple[int, ...]) -> None:
    """Check that a shallower module is the beginning of the whole one. Its tensors are overwritten.

    Args:
        name: the model's, for errors.
        exits: of the shallower one.
        whole: the module with all exits.
        part: the one with so many.
        shape: of one example.

    Raises:
        ModelError: it has other tensors, or computes something else from the same ones.
    """
    parent, child = layout_of(whole), layout_of(part)
    known = {tensor.name: tensor for tensor in parent.tensors}
    for tensor in child.tensors:
        if known.get(tensor.name) != tensor:
            raise ModelError(
                f"model {name!r} with {exits} exits has a tensor {tensor.name!r} of shape {tensor.shape} that the whole has not",
                remedy="Name and size an exit's layers alike at every depth, for example by a list of stages and one of exits",
            )
    load_vector(part, vector_of(whole)[nested_index(parent, child)])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(2, *shape)
        first, same = set_training(whole, on=False)(x)[:, :exits], set_training(part, on=False)(x)
    if not torch.allclose(first, same, rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"model {name!r} with {exits} exits computes something else than the first exits of the whole",
            expected="the same logits with the same weights",
            found=f"differences up to {float((first - same).abs().max()):.3g}",
            remedy="Let an exit depend on the layers before it alone, and give the exits in order, the first one first",
        )
