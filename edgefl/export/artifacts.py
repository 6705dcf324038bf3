"""Training artifacts for onnxruntime-training, made from the same forward graph as everything else.

Model: onnxruntime-training differentiates a forward graph whose trainable weights are initializers (`generate_artifacts`). It
gives a training graph, an optimiser graph and a *nominal* checkpoint: names and shapes without values. The evaluation graph
that it gives as well is dropped, because both engines share one.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgefl.engine.runtime import onnxruntime
from edgefl.errors import EngineError, ModelError
from edgefl.export.loss_graphs import training_loss
from edgefl.export.slim import IR_VERSION
from edgefl.export.tracing import quiet
from edgefl.layout import Layout
from edgefl.recipe import BETAS, EPSILON, WEIGHT_DECAY, Recipe

REMEDY_PORTABLE = "Use a profile with the portable engine"


def export_artifacts(infer: onnx.ModelProto, layout: Layout, name: str, recipe: Recipe) -> Mapping[str, bytes]:
    """Roles `train`, `optimizer` and `checkpoint`. The optimiser of `momentum` is SGD: the engine keeps the velocity itself.

    Args:
        infer: forward graph with the parameters as inputs.
        layout: of the parameters, in whose order the artifacts keep them.
        name: the model's, for errors.
        recipe: loss and optimiser.

    Raises:
        EngineError: this machine's onnxruntime is no training build.
        ModelError: an operator has no gradient there, or a layer has state.
    """
    generate = _generator()
    stateful = next((tensor.name for tensor in layout.tensors if tensor.role == "state"), "")
    if stateful:
        raise ModelError(
            f"onnxruntime-training cannot train model {name!r}: it does not update running statistics",
            found=f"tensor {stateful!r}",
            remedy=REMEDY_PORTABLE,
        )
    model = _with_initializers(training_loss(infer, recipe), layout)
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        try:
            with quiet(), _native_stderr_closed():
                generate.generate_artifacts(
                    model,
                    requires_grad=[tensor.name for tensor in layout.trained],
                    frozen_params=[tensor.name for tensor in layout.tensors if tensor.role == "frozen"],
                    optimizer=generate.OptimType.AdamW if recipe.optimizer == "adamw" else generate.OptimType.SGD,
                    artifact_directory=directory,
                    nominal_checkpoint=True,
                )
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"onnxruntime-training cannot differentiate model {name!r}",
                found=first[:300],
                remedy=REMEDY_PORTABLE,
            ) from error
        root = Path(directory)
        return {
            "train": _readable(root / "training_model.onnx"),
            "optimizer": _readable(root / "optimizer_model.onnx"),
            "checkpoint": (root / "nominal_checkpoint").read_bytes(),
        }


def _generator() -> Any:
    onnxruntime()
    try:
        import onnxruntime.training.artifacts as module  # noqa: PLC0415  exists in the training build only
    except ImportError as error:
        raise EngineError(
            "this machine's ONNX Runtime cannot make training artifacts",
            expected="the distribution onnxruntime-training-cpu (x86-64 Linux, Python up to 3.12)",
            found=str(error),
            remedy="Push from a machine that has it, or use profiles with the portable engine",
        ) from error
    return module


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Silence the C++ side: it logs every graph transformation at a level that nothing in its Python interface changes."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _with_initializers(infer: onnx.ModelProto, layout: Layout) -> onnx.ModelProto:
    """The same graph with its parameters as initializers; their values do not matter."""
    model = onnx.ModelProto()
    model.CopyFrom(infer)
    names = {tensor.name for tensor in layout.tensors}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(np.zeros(t.shape, dtype=np.float32), t.name) for t in layout.tensors)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":  # its gradient reads the statistics, which are optional outputs
            node.output.extend(f"{node.output[0]}.{statistic}" for statistic in ("mean", "scale")[len(node.output) - 1 :])
    model.ir_version = IR_VERSION
    return model


def _readable(path: Path) -> bytes:
    """An artifact that onnxruntime-training 1.19.2 reads: the onnx package writes a newer format version than it knows."""
    model = onnx.load(path)
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        if node.op_type == "AdamWOptimizer":  # as torch's: constants, and decay before the step (mode 0)
            constants = {"alpha": BETAS[0], "beta": BETAS[1], "epsilon": EPSILON, "weight_decay": WEIGHT_DECAY, "adam_mode": 0}
            del node.attribute[:]
            node.attribute.extend(helper.make_attribute(key, value) for key, value in constants.items())
            node.attribute.append(helper.make_attribute("correct_bias", 1))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
