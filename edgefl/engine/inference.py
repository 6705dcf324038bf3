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
        examples = self._shaped(examples)
        if len(examples) == 0:
            raise DataError("there are no examples to evaluate on", remedy="Give the device's source some data")
        names = ["loss", "correct"] if self._files.recipe.classifies else ["loss"]
        sums = np.zeros(len(names))
        session = self._session("eval")
        with converted("evaluation failed"):
            for part in _chunks(len(examples)):
                sums += session.run(names, {**weights, "x": examples.x[part], "y": examples.y[part]})
        loss, *correct = (float(value) / len(examples) for value in sums)
        return Evaluation(loss, correct[0] if correct else None, len(examples))

    def scores(self, weights: Mapping[str, Float32], examples: Examples) -> Float32:
        """The loss of each example, shape `(n,)`.

        Raises:
            DataError: the examples do not fit the model.
            EngineError: the runtime failed.
        """
        examples = self._shaped(examples)
        outputs = self.predict(weights, examples.x)
        if self._files.recipe.loss == "mse":
            errors: Float32 = np.square(outputs - examples.y).mean(1)
            return errors
        if self._files.recipe.loss == "bce":
            entropies: Float32 = (np.logaddexp(np.float32(0), outputs) - outputs * examples.y).mean(1)
            return entropies
        top = outputs.max(1)
        logs: Float32 = np.log(np.exp(outputs - top[:, None]).sum(1)) + top
        return logs - outputs[np.arange(len(outputs)), examples.y]

    def _shaped(self, examples: Examples) -> Examples:
        return examples.shaped(self._files.input_shape, self._files.classes, self._files.recipe.loss)

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
