"""GRU, LSTM and plain recurrent layers, unrolled over time into few large operators.

Model: the products with the input of all time steps are one matrix product in front; a time step then costs one product with the
hidden state and a few element-wise operators. An ONNX graph for boards has no loops (its operators hold no sub-graphs), so it
grows with the length of the window: short windows, or a convolution with stride in front of the layer, keep it small.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgefl.errors import ModelError

MAX_STEPS = 128
"""Time steps times layers times directions. More would make a graph of many thousands of nodes."""

Cell = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(input part of the gates, hidden state, its weight, its bias) -> (hidden state, what else the next step needs)`."""


def attach(module: nn.Module) -> None:
    """Give the module's recurrent layers an unrolled forward function. The module is changed in place; its tensors stay."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase):
            layer.forward = functools.partial(_unrolled, layer, path)


def _unrolled(layer: nn.RNNBase, path: str, x: Tensor, state: object = None) -> tuple[Tensor, object]:
    """As the layer's own forward function, for a batch of windows."""
    _check(layer, path, x, state)
    if not layer.batch_first:
        x = x.transpose(0, 1)
    last: list[Tensor] = []
    cells: list[Tensor] = []
    for depth in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if layer.bidirectional else ("",):
            sequence, hidden, cell = _run(layer, x, f"l{depth}{suffix}", backwards=bool(suffix))
            outputs.append(sequence)
            last.append(hidden)
            cells.append(cell)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    end = torch.stack(last)
    return (x if layer.batch_first else x.transpose(0, 1)), (end, torch.stack(cells)) if layer.mode == "LSTM" else end


def _check(layer: nn.RNNBase, path: str, x: Tensor, state: object) -> None:
    unrolled = (
        x.shape[1 if layer.batch_first else 0] * layer.num_layers * (2 if layer.bidirectional else 1) if x.dim() == 3 else 0
    )
    problem = (
        "a projection" if layer.proj_size else
        "an initial state" if state is not None else
        "dropout" if layer.dropout else
        f"inputs of {x.dim()} axes" if x.dim() != 3 else
        f"{unrolled} time steps" if unrolled > MAX_STEPS else ""
    )  # fmt: skip
    if problem:
        raise ModelError(
            f"the recurrent layer {path!r} cannot be exported",
            expected=f"windows in three axes, at most {MAX_STEPS} time steps in all layers, nothing else",
            found=problem,
            remedy="Shorten the windows, for example by a convolution with a stride in front of the layer",
        )


def _run(layer: nn.RNNBase, x: Tensor, suffix: str, *, backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one direction: all hidden states `(n, t, h)`, the last one, and the last cell state."""
    parameters = {kind: getattr(layer, f"{kind}_{suffix}") for kind in ("weight_ih", "weight_hh")}
    bias = getattr(layer, f"bias_ih_{suffix}", None)
    gates = torch.nn.functional.linear(x, parameters["weight_ih"], bias)
    hidden_bias = getattr(layer, f"bias_hh_{suffix}", None)
    hidden = x.new_zeros(1, layer.hidden_size).expand(x.shape[0], -1)
    cell = hidden
    states = []
    times = torch.unbind(gates, 1)
    for part in reversed(times) if backwards else times:
        back = torch.nn.functional.linear(hidden, parameters["weight_hh"], hidden_bias)
        hidden, cell = _step(layer.mode, part, back, hidden, cell)
        states.append(hidden)
    return torch.stack(states[::-1] if backwards else states, 1), hidden, cell


def _step(mode: str, part: Tensor, back: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One time step from the input's and the hidden state's parts of the gates (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)."""
    size = hidden.shape[1]
    if mode == "GRU":
        part_gates, part_new = torch.split(part, [2 * size, size], 1)
        back_gates, back_new = torch.split(back, [2 * size, size], 1)
        reset, keep = torch.split((part_gates + back_gates).sigmoid(), size, 1)
        new = (part_new + reset * back_new).tanh()
        return new + keep * (hidden - new), cell
    if mode == "LSTM":
        gate, forget, new, out = torch.split(part + back, size, 1)
        cell = forget.sigmoid() * cell + gate.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell
    total = part + back
    return (total.relu() if mode == "RNN_RELU" else total.tanh()), cell
