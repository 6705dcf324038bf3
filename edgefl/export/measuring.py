"""What a module is and does, measured in torch on this machine: accuracy on examples, multiplications, kept activations.

Rules: nothing of the module changes but gradients. Activations are what autograd keeps for the backward pass, without the
parameters themselves.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from edgefl.compress.cost import Work
from edgefl.examples import Examples
from edgefl.export.losses import IN_TORCH
from edgefl.export.tensors import outputs_of, set_training
from edgefl.recipe import Recipe

ROWS = 256
"""Examples that are computed at once."""
MEASURED = 4
"""Rows of the step whose activations are counted; BatchNorm takes several."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def accuracy_in_torch(module: nn.Module, examples: Examples, recipe: Recipe) -> float:
    """Share of right answers in [0, 1]; examples are shaped for the model, whose recipe classifies."""
    right = 0
    set_training(module, on=False)
    with torch.no_grad():
        for start in range(0, len(examples), ROWS):
            outputs = outputs_of(module, torch.from_numpy(examples.x[start : start + ROWS])).numpy()
            y = examples.y[start : start + ROWS]
            if recipe.loss == "cross-entropy":
                right += int((outputs.argmax(axis=1) == y).sum())
            else:
                right += int(((outputs > 0.0) == (y > 0.5)).all(axis=1).sum())
    set_training(module, on=True)
    return right / max(len(examples), 1)


def gradients_in_torch(module: nn.Module, examples: Examples, recipe: Recipe) -> None:
    """Leave the gradient of the mean loss on the module's parameters."""
    module.zero_grad()
    rows = np.linspace(0, len(examples) - 1, min(ROWS, len(examples))).astype(np.int64)
    chosen = examples.take(rows)
    loss = IN_TORCH[recipe.loss](outputs_of(module, torch.from_numpy(chosen.x)), torch.from_numpy(chosen.y))
    loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped


def work_of(module: nn.Module, input_shape: tuple[int, ...]) -> Work:
    """What one example takes, see `edgefl.compress.cost.Work`."""
    reuse: dict[str, int] = {}
    paths = {layer: path for path, layer in module.named_modules()}

    def count(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            name = f"{paths[layer]}.weight".lstrip(".")
            reuse[name] = reuse.get(name, 0) + output.numel() // (MEASURED * channels)

    parameters = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
    kept: dict[tuple[int, tuple[int, ...]], int] = {}
    held: list[Tensor] = []  # a freed tensor's address may be given out again

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in parameters:
            kept[value.data_ptr(), tuple(value.shape)] = value.numel()
            held.append(value)
        return value

    handles = [layer.register_forward_hook(count) for layer in module.modules()]
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), torch.random.fork_rng(devices=[]):
            module(torch.zeros(MEASURED, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(before[name])
    return Work(math.ceil(sum(kept.values()) / MEASURED), tuple(reuse.items()))
