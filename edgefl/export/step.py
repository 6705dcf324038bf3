"""A whole training step as one ONNX graph of standard operators: forward, backward and the optimiser's update.

Model: `step(parameters..., x, y, w, lr) -> (loss, new parameters...)` for a fixed batch size. `w` is 1 for a real row and 0
for padding; loss and gradient are means over the real rows, so a smaller last batch counts exactly as what it is. Any stock
ONNX Runtime runs the graph, on any processor: this is how a Raspberry Pi trains.

Rules: the loss is given as `(value, gradient by logits)` instead of being differentiated, which keeps its part of the graph
small; everything below the logits is differentiated by torch (`torch.func.vjp`) and lowered by `lowering`. An optimiser with
state would add its tensors between the parameters and `x`, and after the new parameters.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from edgefl.engine.portable import SUFFIX_NEW
from edgefl.errors import ModelError
from edgefl.export.lowering import table
from edgefl.export.models import ModelSource, layout_of
from edgefl.export.slim import slim
from edgefl.export.tracing import Traced, quiet, refuse_random, to_onnx, untranslatable


def cross_entropy(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Mean softmax cross-entropy over the rows with `w` 1, and its gradient by the logits.

    Args:
        logits: float32 `(n, classes)`.
        y: int64 `(n,)`, labels.
        w: float32 `(n,)`, 1 for real rows and 0 for padding; at least one is 1.
    """
    truth = (y[:, None] == torch.arange(logits.shape[1])[None, :]).to(logits.dtype)
    logs = torch.log_softmax(logits, 1)
    share = (w / w.sum())[:, None]
    return -(truth * logs * share).sum(), (logs.exp() - truth) * share


def export_step(source: ModelSource, module: nn.Module, batch: int, layers: torch.fx.Graph) -> bytes:
    """The training step of `module` for batches of `batch` rows, as ONNX bytes.

    Inputs: the parameters by name, `x` `(batch, *input_shape)` float32, `y` `(batch,)` int64, `w` `(batch,)` float32, `lr`
    float32 scalar. Outputs: `loss` and, for each parameter, its name followed by `.new`.

    Args:
        source: the model.
        module: the model as built at one width.
        batch: rows of a step.
        layers: forward trace of the module, in which errors look up layer names.

    Raises:
        ModelError: something in the model cannot be exported; the text names the operator and, if known, the layer.
    """
    names = [tensor.name for tensor in layout_of(module).tensors]
    count = len(names)

    def step(*flat: Tensor) -> tuple[Tensor, ...]:
        parameters, (x, y, w, lr) = flat[:count], flat[count:]

        def logits_of(values: Sequence[Tensor]) -> Tensor:
            named = dict(zip(names, values, strict=True))
            logits: Tensor = torch.func.functional_call(module, named, (x,))
            return logits

        logits, pull = cast("tuple[Tensor, Callable[[Tensor], tuple[Sequence[Tensor]]]]", torch.func.vjp(logits_of, parameters))
        loss, by_logits = cross_entropy(logits, y, w)
        (gradients,) = pull(by_logits)
        return loss, *(p - lr * g for p, g in zip(parameters, gradients, strict=True))

    arguments = (
        *(value.detach().clone() for value in module.parameters()),
        torch.zeros(batch, *source.input_shape),
        torch.zeros(batch, dtype=torch.int64),
        torch.ones(batch),
        torch.tensor(0.1),
    )
    try:
        with quiet():
            traced = make_fx(step, decomposition_table=dict(table()), tracing_mode="fake")(*arguments)
            program = torch.export.export(Traced(traced), arguments, strict=False)
    except ModelError:
        raise
    except Exception as error:
        raise untranslatable(source.name, error, layers) from error
    refuse_random(traced.graph, source.name)
    outputs = ["loss", *(name + SUFFIX_NEW for name in names)]
    return slim(to_onnx(program, [*names, "x", "y", "w", "lr"], outputs, name=source.name, layers=layers, simplify=False))
