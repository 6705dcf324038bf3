"""torch's ONNX exporter, called the same way everywhere: quietly, with errors that a person can act on.

Rules: the exporter gets an `ExportedProgram`, so that there is one attempt and one error; opset 18, the newest that the
exporter produces directly and that onnxruntime 1.19 runs. Operators that draw random numbers are refused: the boards could not
reproduce them, and torch, the portable engine and onnxruntime-training would each draw others.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnxscript import optimizer
from torch import fx, nn

from edgefl.errors import ModelError
from edgefl.export.operators import TRANSLATIONS
from edgefl.export.sparing import spare

OPSET = 18
Layers = Callable[[], fx.Graph]
"""Gives the forward trace of a model, which knows the layers. It is made only when an error asks for it: no graph needs it."""
REMEDY_OPERATOR = "Replace it by layers that docs/operators.md lists, for example linear, convolution, pooling, ReLU, GroupNorm"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporter prints, logs and warns about while it works."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def primitive_attention() -> Iterator[None]:
    """Let torch compute attention by matrix products and softmax, not by a fused kernel that has no ONNX form."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


def refuse_random(graph: fx.Graph, name: str, layers: Layers | None = None) -> None:
    """Check that nothing in a trace draws random numbers.

    Args:
        graph: the trace.
        name: the model's, for errors.
        layers: gives a trace that knows the layers, and has been checked itself, if this one does not know them.

    Raises:
        ModelError: something does; the text names the operator and, if known, its layer.
    """
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and _chance(node) != 0.0:
            if layers is not None:
                layers()
            raise ModelError(
                f"model {name!r} draws random numbers in training",
                found=f"operator {node.target}{_layer(node)}",
                remedy="Remove dropout and other random layers",
            )


def to_onnx(
    program: torch.export.ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    name: str,
    layers: Layers,
    simplify: bool,
) -> onnx.ModelProto:
    """Translate a traced program.

    Args:
        program: what to translate.
        inputs: names of the graph's flattened inputs, in order.
        outputs: names of its flattened outputs.
        name: the model's, for errors.
        layers: gives a forward trace, in which the layer of an untranslatable operator is looked up.
        simplify: rewrite the graph by the exporter's patterns; takes seconds for a graph of hundreds of nodes, and gains
            little, because ONNX Runtime does the same on loading.

    Raises:
        ModelError: an operator has no ONNX form.
    """
    spare()
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                optimize=simplify,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=dict(TRANSLATIONS),
            )
            if exported is None:  # torch returns none only when it is given a file
                raise ModelError(f"model {name!r} cannot be exported")
            if not simplify:
                optimizer.inline(exported.model)
                optimizer.fold_constants(exported.model)
                optimizer.remove_unused_nodes(exported.model)
            model: onnx.ModelProto = exported.model_proto
    except ModelError:
        raise
    except Exception as error:
        raise untranslatable(name, error, layers) from error
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain})
    if foreign:
        raise ModelError(
            f"model {name!r} needs operators outside the ONNX standard", found=", ".join(foreign), remedy=REMEDY_OPERATOR
        )
    return model


def untranslatable(name: str, error: BaseException, layers: Layers) -> ModelError:
    """The error for a model that the exporter could not translate: names the operator and the layer that uses it."""
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__
    match = re.search(r"aten[.:]+(\w+)", text)
    if match is None:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ModelError(f"model {name!r} cannot be exported", found=first[:300], remedy=REMEDY_OPERATOR)
    operator = match.group(1)
    forward = operator.removesuffix("_backward").lstrip("_")
    try:
        known = layers()
    except ModelError:  # of something else in the model; this error came first
        known = fx.Graph()
    where = next((_layer(node) for node in known.nodes if forward in str(node.target) and _layer(node)), "")
    return ModelError(
        f"model {name!r} uses an operator that cannot be exported", found=f"aten.{operator}{where}", remedy=REMEDY_OPERATOR
    )


def _chance(node: fx.Node) -> object:
    """The probability with which a layer drops values; None if it has no such argument."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # noqa: SLF001  an operator's schema
    place = next((i for i, name in enumerate(names) if name in {"p", "dropout_p"}), None)
    if place is None:
        return None
    default = node.target._schema.arguments[place].default_value  # type: ignore[union-attr]  # noqa: SLF001  as above
    return node.args[place] if place < len(node.args) else node.kwargs.get(names[place], default)


def _layer(node: fx.Node) -> str:
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
    path = next((path for path, _ in reversed(list(stack.values())) if path), "")
    return f" in layer {path!r}" if path else ""


class Traced(nn.Module):
    """A function or graph of flat tensors as a module without parameters, which is what `torch.export` takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The function's value."""
        return self.function(*tensors)
