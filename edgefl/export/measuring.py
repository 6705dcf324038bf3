"""What a module is and does, measured in torch on this machine: accuracy on examples, multiplications, kept activations.

Rules: nothing of the module changes but gradients. Activations are what autograd keeps for the backward pass, without the
parameters themselves.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgefl.compress.cost import Work
from edgefl.examples import Examples
from edgefl.export.losses import loss_in_torch
from edgefl.export.models import ModelSource
from edgefl.export.tensors import load_vector, outputs_of, set_training, trained_outputs_of
from edgefl.layout import Float32
from edgefl.recipe import Recipe

ROWS = 256
"""Examples that are computed at once."""
FEW = 8
"""Examples of a gradient whose square is taken."""
MEASURED = 4
"""Rows of the step whose activations are counted; BatchNorm takes several."""
Right = npt.NDArray[np.float64]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def accuracy_in_torch(module: nn.Module, examples: Examples, recipe: Recipe) -> float:
    """Share of right answers in [0, 1]; examples are shaped for the model, whose recipe classifies."""
    return float(right_in_torch(module, examples, recipe).mean()) if len(examples) else 0.0


def right_in_torch(module: nn.Module, examples: Examples, recipe: Recipe) -> Right:
    """How right each answer is: 1 or 0; where an example has several yes and no, the share of right ones. float64 `(n,)`."""
    right = [np.empty(0)]
    set_training(module, on=False)
    with torch.no_grad():
        for start in range(0, len(examples), ROWS):
            outputs = outputs_of(module, torch.from_numpy(examples.x[start : start + ROWS])).numpy()
            y = examples.y[start : start + ROWS]
            found = outputs.argmax(axis=1) == y if recipe.labels else ((outputs > 0.0) == (y > 0.5)).mean(axis=1)
            right.append(found.astype(np.float64))
    set_training(module, on=True)
    return np.concatenate(right)


def right_of(source: ModelSource, width: float, vector: Float32, examples: Examples) -> Right:
    """How right each answer of a model with these weights is, as above."""
    module = source.build(width)
    load_vector(module, vector)
    return right_in_torch(module, examples, source.recipe)


def accuracy_of(source: ModelSource, width: float, vector: Float32, examples: Examples) -> float:
    """Share of right answers of a model with these weights, as above."""
    module = source.build(width)
    load_vector(module, vector)
    return accuracy_in_torch(module, examples, source.recipe)


def gradients_in_torch(module: nn.Module, examples: Examples, recipe: Recipe) -> None:
    """Leave on each parameter the root mean square of its gradients over small batches, with the parameter's own sign.

    A mean gradient is near zero where training has ended, whatever the loss would say of a change; its square is not. With the
    sign, parameter times gradient is what the loss changes by without it, to first order, and never cancels out.
    """
    rows = np.linspace(0, len(examples) - 1, min(ROWS, len(examples))).astype(np.int64)
    total: dict[str, Tensor] = {}
    for start in range(0, len(rows), FEW):
        chosen = examples.take(rows[start : start + FEW])
        module.zero_grad()
        outputs = trained_outputs_of(module, torch.from_numpy(chosen.x))
        loss = loss_in_torch(recipe.loss, outputs, torch.from_numpy(chosen.y))
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        for name, value in module.named_parameters():
            if value.grad is not None:
                total[name] = total.get(name, torch.zeros(())) + value.grad.square()
    for name, value in module.named_parameters():
        value.grad = total[name].sqrt() * value.detach().sign() if name in total else torch.zeros_like(value)


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
