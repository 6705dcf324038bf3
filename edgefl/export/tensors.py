"""The tensors of a torch module as a layout and a flat vector, and which of them are trained, frozen, state or personal.

Model: the layout holds the module's parameters in the order in which torch lists them, then its floating-point buffers that a
state dict holds. A parameter is trained if it requires a gradient. Of the buffers, BatchNorm's running statistics are state; all
others are frozen. The attributes `edgefl_frozen` and `edgefl_personal`, patterns of names, are written by `models` on the modules
that it builds, so that they go where the module goes; so is `edgefl_exits`, the number of its exits.
"""

import fnmatch
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgefl.layout import Float32, Layout, Role, Tensor

NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def layout_of(module: nn.Module) -> Layout:
    """Layout of the module's parameters, in the order in which torch lists them, then of its buffers; a tied one counts once."""
    personal = getattr(module, "edgefl_personal", ())
    frozen = getattr(module, "edgefl_frozen", ())
    state = {f"{path}.{kind}".lstrip(".") for path in batch_norms(module) for kind in ("running_mean", "running_var")}

    def described(name: str, value: torch.Tensor) -> Tensor:
        trained = isinstance(value, nn.Parameter) and value.requires_grad
        role: Role = "trained" if trained else "state" if name in state and not matches(name, frozen) else "frozen"
        return Tensor(name, tuple(value.shape), role, matches(name, personal))

    return Layout(tuple(described(name, value) for name, value in tensors_of(module).items()))


def tensors_of(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """The module's own tensors that the layout has, by name and in its order."""
    kept = module.state_dict().keys()
    buffers = ((name, value) for name, value in module.named_buffers() if name in kept and value.is_floating_point())
    return {**dict(module.named_parameters()), **dict(buffers)}


def vector_of(module: nn.Module) -> Float32:
    """The module's tensors as one new flat vector.

    Without negative zeros, which a mask that was multiplied leaves and which would mean more here (`edgefl.codec.marks`).
    """
    parts = [value.detach().reshape(-1).numpy() for value in tensors_of(module).values()]
    vector = np.concatenate(parts).astype(np.float32, copy=False)
    vector += np.float32(0.0)
    return vector


def load_vector(module: nn.Module, flat: Float32) -> None:
    """Overwrite the module's tensors.

    Raises:
        ModelError: the vector's length is not the module's.
    """
    views = layout_of(module).views(flat)
    with torch.no_grad():
        for name, value in tensors_of(module).items():
            value.copy_(torch.from_numpy(views[name].copy()))


def set_training(module: nn.Module, *, on: bool) -> nn.Module:
    """The same module in training or evaluation mode; BatchNorm layers with frozen statistics stay in evaluation."""
    module.train(on)
    frozen = getattr(module, "edgefl_frozen", ())
    for path, layer in batch_norms(module).items():
        if matches(f"{path}.running_mean".lstrip("."), frozen):
            layer.eval()
    return module


def batch_norms(module: nn.Module) -> Mapping[str, nn.Module]:
    """The BatchNorm layers of a module by path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns (`fnmatch`, case counts)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def outputs_of(module: nn.Module, x: torch.Tensor, tensors: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """What the module answers, `(n, k)`, however many axes its outputs have; of several exits the mean of their logits.

    Args:
        module: a model.
        x: `(n, *input_shape)`.
        tensors: to compute with in place of its own.
    """
    outputs = trained_outputs_of(module, x, tensors)
    return outputs.mean(1) if outputs.dim() == 3 else outputs


def trained_outputs_of(module: nn.Module, x: torch.Tensor, tensors: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """What its loss takes: the same, but of a model with exits the logits of all of them, `(n, exits, classes)`."""
    outputs: torch.Tensor = module(x) if tensors is None else torch.func.functional_call(module, dict(tensors), (x,))
    if exits_of(module):
        return outputs
    return outputs[:, None] if outputs.dim() == 1 else outputs.flatten(1)


def exits_of(module: nn.Module) -> int:
    """How many exits it has; 0: it has one output and no exits."""
    return int(getattr(module, "edgefl_exits", 0))
