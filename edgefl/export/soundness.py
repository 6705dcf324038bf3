"""Whether a torch module that a factory builds is one that edgefl can work with.

Model: a module is built from a seed; its parameters are float32 on the CPU, and finite; it says which inputs it takes, runs on
them, gives outputs that its loss takes, and changes no buffers but BatchNorm's running statistics.

Rules: every way in which it can be wrong has its own words, which name the model as the operator gave it. The caller's random
numbers stay as they are.
"""

import math
from typing import cast

import torch
from torch import nn

from edgefl.engine.signature import RESERVED
from edgefl.errors import ModelError
from edgefl.export.exits import counted_exits
from edgefl.export.factory import Factory, said
from edgefl.export.tensors import NORM_BUFFERS, batch_norms, tensors_of
from edgefl.recipe import Recipe


def built(name: str, factory: Factory, width: float, seed: int) -> nn.Module:
    """The factory's module in training mode; equal seeds give equal weights.

    Args:
        name: of the model, for what is said of it; the same below.
        factory: as the operator named it.
        width: in (0, 1].
        seed: of its initialisation.

    Raises:
        ModelError: it fails, returns no module, or one whose tensors cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory(width)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the factory of model {name!r} failed at width {width:g}", found=said(error)) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory of model {name!r} does not return a torch module", expected="nn.Module", found=type(module).__name__
        )
    _check_parameters(name, module)
    return module.train()


def _check_parameters(name: str, module: nn.Module) -> None:
    if not any(True for _ in module.parameters()):
        raise ModelError(f"model {name!r} has no parameters")
    for key, value in tensors_of(module).items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"tensor {key!r} of model {name!r} holds NaN or infinite values",
                remedy="Register a buffer that is a constant, as a mask, with persistent=False",
            )
    for key, value in module.named_parameters():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise ModelError(
                f"parameter {key!r} of model {name!r} cannot be used",
                expected="float32 on the CPU",
                found=f"{value.dtype} on {value.device}",
            )
        if key in RESERVED:
            raise ModelError(
                f"a parameter of model {name!r} is called {key!r}, as an input of the training step is", remedy="Rename it"
            )


def shape_of(name: str, module: nn.Module) -> tuple[int, ...]:
    """Its input's shape, without the batch axis, as the module says. Raises ModelError when it does not."""
    shape = getattr(module, "input_shape", None)
    good = isinstance(shape, (tuple, list, torch.Size)) and len(shape) > 0 and all(isinstance(n, int) and n > 0 for n in shape)
    if not good:
        raise ModelError(
            f"model {name!r} does not say what it takes",
            expected="an attribute input_shape, a tuple of positive integers without the batch axis",
            found="none" if shape is None else repr(shape),
            remedy="Add for example `input_shape = (1, 28, 28)` to its class",
        )
    return tuple(cast("tuple[int, ...]", shape))


def check_buffers(name: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    """Run it once on noise. Raises ModelError when that changes a buffer other than BatchNorm's running statistics."""
    known = {f"{path}.{kind}".lstrip(".") for path in batch_norms(module) for kind in NORM_BUFFERS}
    before = {key: value.clone() for key, value in module.named_buffers() if key not in known}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        module(torch.randn(2, *shape))
    for key, value in module.named_buffers():
        if key not in known and not torch.equal(value, before[key]):
            raise ModelError(
                f"model {name!r} changes its buffer {key!r} while it computes",
                expected="running statistics of BatchNorm only",
                remedy="Replace the layer, for example by GroupNorm",
            )


def outputs_of(name: str, module: nn.Module, shape: tuple[int, ...], recipe: Recipe, *, exits: bool) -> tuple[int, int]:
    """How many exits, 0 if it is no model with exits, and outputs a module has.

    Raises:
        ModelError: it does not run on its own input shape, or gives nothing that the recipe's loss takes.
    """
    rows = 2
    module.eval()  # one row per channel is enough then, and no running statistics change
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = module(torch.zeros(rows, *shape))
    except Exception as error:
        raise ModelError(f"model {name!r} does not run on inputs of its own input_shape {shape}", found=said(error)) from error
    module.train()
    found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(logits, torch.Tensor) or logits.ndim < 1 or len(logits) != rows:
        raise ModelError(f"model {name!r} gives no outputs", expected="one tensor with a row per example", found=found)
    if exits:
        return counted_exits(name, logits, recipe)
    if recipe.loss == "self-distillation":
        raise ModelError(
            f"model {name!r} has no exits that could teach each other",
            remedy="Give its factory a parameter `exits`, or choose the loss cross-entropy",
        )
    if recipe.labels and (logits.ndim != 2 or logits.shape[1] < 2):
        raise ModelError(
            f"model {name!r} does not classify",
            expected="one tensor of shape (examples, classes), at least 2 classes",
            found=found,
            remedy="Choose the loss bce or mse for other outputs",
        )
    return 0, math.prod(logits.shape[1:])
