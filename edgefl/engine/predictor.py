"""A forward graph and its weights, loaded from bytes and ready for requests from any thread.

Model: bytes and not files, so that what was checked is what is loaded, and nothing on disk is needed afterwards. ONNX Runtime's
`run` may be called by several threads at once; everything else here is set once.

Rule: inputs go in chunks of `ROWS`, so that memory does not grow with a request.
"""

from collections.abc import Mapping

import numpy as np

from edgefl.engine.inference import ROWS
from edgefl.engine.runtime import converted, load_session
from edgefl.errors import EngineError
from edgefl.layout import Float32


class Predictor:
    """One graph with one set of weights.

    Args:
        graph: an ONNX file with the input `x`, an input for each weight, and the output `logits`.
        weights: by name of the input; empty if the graph has its own.
        classes: number of outputs.
        threads: of one operator; at least 1.

    Raises:
        EngineError: the graph does not load, uses an operator that is not allowed, or does not take these weights.
    """

    def __init__(self, graph: bytes, weights: Mapping[str, Float32], *, classes: int, threads: int) -> None:
        session, found = load_session("infer", graph, threads)
        if set(found.inputs) != {"x", *weights}:
            raise EngineError("the graph does not belong to these weights", remedy="Push the model again")
        self._session = session
        self._weights = dict(weights)
        self._classes = classes

    def with_weights(self, weights: Mapping[str, Float32]) -> "Predictor":
        """The same session with other weights of the same names; requests that are under way keep theirs."""
        other = object.__new__(Predictor)
        other._session, other._weights, other._classes = self._session, dict(weights), self._classes
        return other

    def logits(self, x: Float32) -> Float32:
        """Outputs `(n, classes)` of inputs `(n, *input_shape)`.

        Raises:
            EngineError: the runtime failed.
        """
        outputs = np.empty((len(x), self._classes), dtype=np.float32)
        with converted("prediction failed"):
            for start in range(0, len(x), ROWS):
                part = slice(start, start + ROWS)
                outputs[part] = self._session.run(["logits"], {**self._weights, "x": x[part]})[0]
        return outputs
