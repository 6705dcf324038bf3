"""Evaluation and prediction, the same for both engines: the `eval` and `infer` graphs, fed in chunks.

Rules: a session is opened on first use, because a device that only trains needs neither; inputs go in chunks of `ROWS`, so
that memory does not grow with the data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgefl.engine.contract import Evaluation, VariantFiles
from edgefl.engine.runtime import converted, open_session, role_path
from edgefl.errors import DataError, EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32

ROWS = 64
"""Examples per call: as many as a training batch, so that evaluation needs no more memory than training."""


class Inference:
    """The forward graphs of one variant."""

    def __init__(self, files: VariantFiles, threads: int) -> None:
        self._files = files
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def evaluate(self, weights: Mapping[str, Float32], examples: Examples) -> Evaluation:
        """Mean loss and accuracy of these weights.

        Raises:
            DataError: no examples, or they do not fit the model.
            EngineError: the runtime failed.
        """
        examples = examples.shaped(self._files.input_shape, self._files.classes)
        if len(examples) == 0:
            raise DataError("there are no examples to evaluate on", remedy="Give the device's source some data")
        loss = correct = 0.0
        session = self._session("eval")
        with converted("evaluation failed"):
            for part in _chunks(len(examples)):
                outputs = session.run(["loss", "correct"], {**weights, "x": examples.x[part], "y": examples.y[part]})
                loss += float(outputs[0])
                correct += float(outputs[1])
        return Evaluation(loss / len(examples), correct / len(examples), len(examples))

    def predict(self, weights: Mapping[str, Float32], x: Float32) -> Float32:
        """Logits `(n, classes)` of inputs `(n, *input_shape)`.

        Raises:
            DataError: another shape or type.
            EngineError: the runtime failed.
        """
        if x.dtype != np.float32 or x.shape[1:] != self._files.input_shape:
            raise DataError(
                "the input does not fit the model",
                expected=f"float32 of shape (n, {', '.join(str(n) for n in self._files.input_shape)})",
                found=f"{x.dtype} of shape {x.shape}",
            )
        logits = np.empty((len(x), self._files.classes), dtype=np.float32)
        session = self._session("infer")
        with converted("prediction failed"):
            for part in _chunks(len(x)):
                logits[part] = session.run(["logits"], {**weights, "x": x[part]})[0]
        return logits

    def _session(self, role: str) -> Any:
        if role not in self._sessions:
            session, graph = open_session(role_path(self._files, role), self._threads)
            expected = {tensor.name for tensor in self._files.layout.tensors} | {"x"} | ({"y"} if role == "eval" else set())
            if set(graph.inputs) != expected:
                raise EngineError(f"graph {graph.name} does not belong to this layout", remedy="Push the model again")
            self._sessions[role] = session
        return self._sessions[role]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))
