"""The forward graph that both engines share: `infer`, the model's outputs for any number of rows.

Model: `infer(tensors..., x) -> logits` is traced once per variant with a symbolic batch axis; outputs of more axes are flattened
to `(n, k)`. The layers compute as in evaluation: BatchNorm uses its running statistics.

Rules: weights are inputs, never inside a graph: they travel as one flat vector. Operators whose gradient onnxruntime-training
lacks or gets wrong are written in others (`differentiable`), because it differentiates this graph.
"""

import onnx
import torch
from torch import Tensor, fx, nn

from edgefl.errors import ModelError
from edgefl.export.differentiable import differentiable
from edgefl.export.models import ModelSource
from edgefl.export.program import decomposed
from edgefl.export.tensors import outputs_of, set_training, tensors_of
from edgefl.export.tracing import Layers, Traced, primitive_attention, quiet, refuse_random, to_onnx, untranslatable


def trace_forward(source: ModelSource, module: nn.Module) -> torch.export.ExportedProgram:
    """Trace the module in training mode with a symbolic number of rows; its graph knows the layers, as no other trace does.

    Raises:
        ModelError: the model cannot be traced, draws random numbers, or depends on the number of rows.
    """
    example = torch.zeros(3, *source.input_shape)
    set_training(module, on=True)
    try:
        with quiet():
            rows = torch.export.Dim("rows", min=1)
            program = torch.export.export(module, (example,), dynamic_shapes=({0: rows},), strict=False)
    except ModelError:
        raise
    except Exception as error:
        raise untranslatable(source.name, error, fx.Graph) from error
    refuse_random(program.graph, source.name)
    return program


def forward_graph(source: ModelSource, module: nn.Module, layers: Layers) -> onnx.ModelProto:
    """`infer`, not yet slimmed. The module is left in training mode.

    Raises:
        ModelError: an operator has no ONNX form.
    """
    tensors = tensors_of(module)
    names = list(tensors)

    def forward(*flat: Tensor) -> Tensor:
        return outputs_of(module, flat[-1], dict(zip(names, flat[:-1], strict=True)))

    arguments = (*(value.detach().clone() for value in tensors.values()), torch.zeros(3, *source.input_shape))
    shapes = (*((None,) * len(names)), {0: torch.export.Dim("rows", min=1)})
    set_training(module, on=False)
    try:
        with quiet(), primitive_attention():
            program = torch.export.export(Traced(forward), arguments, dynamic_shapes=(shapes,), strict=False)
            program = decomposed(program, differentiable())
    except ModelError:
        raise
    except Exception as error:
        raise untranslatable(source.name, error, layers) from error
    finally:
        set_training(module, on=True)
    return to_onnx(program, [*names, "x"], ["logits"], name=source.name, layers=layers, simplify=True)
