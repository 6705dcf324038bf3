"""A whole training step as one ONNX graph of standard operators: forward, backward and the optimiser's update.

Model: `step(tensors..., x, y, w, lr, ...) -> (loss, new tensors..., new state...)` for a fixed batch size; the names and their
order are in `edgefl.engine.signature`. `w` is 1 for a real row and 0 for padding; loss and gradient are means over the real rows,
so a smaller last batch counts exactly as what it is. Any stock ONNX Runtime runs the graph, on any processor: this is how a
Raspberry Pi trains.

Rules: the loss is given as `(value, gradient by outputs)` instead of being differentiated, which keeps its part of the graph
small; everything below the outputs is differentiated by torch (`torch.func.vjp`), by the trained tensors only, and lowered by
`lowering`. An optimiser is the same arithmetic, in the same order, as torch's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from edgefl.engine.signature import SCALARS, SUFFIX_NEW, SUFFIX_START, start_layout, state_layout, step_inputs, step_outputs
from edgefl.errors import ModelError
from edgefl.export.batchnorm import Statistics
from edgefl.export.gradients import REWRITTEN
from edgefl.export.losses import loss_and_gradient
from edgefl.export.lowering import mask_before_unpooling, table
from edgefl.export.models import ModelSource
from edgefl.export.program import program_of
from edgefl.export.slim import slim
from edgefl.export.tensors import layout_of, tensors_of, trained_outputs_of
from edgefl.export.tracing import Layers, primitive_attention, quiet, refuse_random, to_onnx, untranslatable
from edgefl.layout import Layout
from edgefl.recipe import BETAS, EPSILON, MOMENTUM, WEIGHT_DECAY, Recipe

Named = Mapping[str, Tensor]
Step = Callable[..., tuple[Tensor, ...]]


def export_step(source: ModelSource, module: nn.Module, statistics: Statistics, batch: int, layers: Layers) -> bytes:
    """The training step of `module` for batches of `batch` rows, as ONNX bytes.

    Args:
        source: the model.
        module: the model as built at one width, with the exporter's own layers attached.
        statistics: where its BatchNorm layers put what they found.
        batch: rows of a step.
        layers: gives the forward trace of the module, in which errors look up layer names.

    Raises:
        ModelError: something in the model cannot be exported; the text names the operator and, if known, the layer.
    """
    layout, recipe = layout_of(module), source.recipe
    inputs, outputs = step_inputs(layout, recipe), step_outputs(layout, recipe)
    arguments = _arguments(source, module, batch, inputs)
    try:
        with quiet(), primitive_attention():
            step = _step(module, layout, statistics, recipe, inputs, outputs)
            make = make_fx(step, decomposition_table={**table(), **REWRITTEN}, tracing_mode="fake", _allow_non_fake_inputs=True)
            traced = make(*arguments)
            mask_before_unpooling(traced.graph)
            program = program_of(traced, arguments)
    except ModelError:
        raise
    except Exception as error:
        statistics.mask = None
        raise untranslatable(source.name, error, layers) from error
    finally:
        statistics.mask = None
    refuse_random(traced.graph, source.name, layers)
    return slim(to_onnx(program, inputs, outputs, name=source.name, layers=layers, simplify=False))


def _arguments(source: ModelSource, module: nn.Module, batch: int, inputs: Sequence[str]) -> tuple[Tensor, ...]:
    """Example values of all inputs."""
    layout, recipe = layout_of(module), source.recipe
    labels = recipe.labels
    examples = {name: value.detach().clone() for name, value in tensors_of(module).items()}
    examples |= {t.name: torch.zeros(t.shape) for t in (*state_layout(layout, recipe), *start_layout(layout, recipe))}
    examples |= {name: torch.tensor(0.1) for name in SCALARS}
    examples |= {
        "x": torch.zeros(batch, *source.input_shape),
        "y": torch.zeros(batch, dtype=torch.int64) if labels else torch.zeros(batch, source.classes),
        "w": torch.ones(batch),
    }
    return tuple(examples[name] for name in inputs)


def _step(
    module: nn.Module, layout: Layout, statistics: Statistics, recipe: Recipe, inputs: Sequence[str], outputs: Sequence[str]
) -> Step:
    """The step as a function of flat tensors."""
    trained = [tensor.name for tensor in layout.trained]
    others = [tensor.name for tensor in layout.tensors if tensor.role != "trained"]

    def step(*flat: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs, flat, strict=True))
        fixed = {name: given[name] for name in others}
        statistics.mask = given["w"]

        def forward(values: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            statistics.updated = {}
            named = {**dict(zip(trained, values, strict=True)), **fixed}
            return trained_outputs_of(module, given["x"], named), dict(statistics.updated)

        result, pull, updated = cast(
            "tuple[Tensor, Callable[[Tensor], tuple[Sequence[Tensor]]], dict[str, Tensor]]",
            torch.func.vjp(forward, [given[name] for name in trained], has_aux=True),
        )
        loss, by_outputs = loss_and_gradient(recipe.loss, result, given["y"], given["w"], given.get("mutual"))
        with torch.no_grad():  # gradients that are not differentiated again have shorter forms
            (gradients,) = pull(by_outputs)
        found = {"loss": loss, **{name + SUFFIX_NEW: value for name, value in {**fixed, **updated}.items()}}
        for name, gradient in zip(trained, gradients, strict=True):
            found.update(_updated(name, gradient, given, recipe))
        return tuple(found[name] for name in outputs)

    return step


def _updated(name: str, gradient: Tensor, given: Named, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """New parameter and new optimiser state by name."""
    value, rate = given[name], given["lr"]
    if recipe.proximal:
        gradient = gradient + given["mu"] * (value - given[name + SUFFIX_START])
    match recipe.optimizer:
        case "sgd":
            yield name + SUFFIX_NEW, value - rate * gradient
        case "momentum":
            velocity = given[f"{name}.velocity"] * MOMENTUM + gradient
            yield f"{name}.velocity{SUFFIX_NEW}", velocity
            yield name + SUFFIX_NEW, value - rate * velocity
        case "adamw":
            mean = given[f"{name}.mean"] * BETAS[0] + gradient * (1.0 - BETAS[0])
            square = given[f"{name}.square"] * BETAS[1] + gradient * gradient * (1.0 - BETAS[1])
            yield f"{name}.mean{SUFFIX_NEW}", mean
            yield f"{name}.square{SUFFIX_NEW}", square
            kept = value * (1.0 - rate * WEIGHT_DECAY)
            yield name + SUFFIX_NEW, kept - rate * given["c1"] * mean / (square.sqrt() * given["c2"] + EPSILON)
