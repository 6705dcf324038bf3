"""The portable engine: the whole training step is one ONNX graph of standard operators, run by any ONNX Runtime.

Model: two flat parameter vectors take turns. A step reads one and writes the other; the graph's tensors are views of them,
bound once, so that between steps Python copies nothing but the mini-batch. (One vector for both would be wrong: an operator
may still read a weight that the update has already overwritten.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.engine.contract import Evaluation, Trained, VariantFiles
from edgefl.engine.inference import Inference
from edgefl.engine.runtime import converted, open_session, role_path
from edgefl.engine.training import check_finite, run_epochs
from edgefl.errors import EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32, Layout

SUFFIX_NEW = ".new"
"""A parameter's name with this names the output that replaces it."""


class PortableEngine:
    """Trains with the graph `train`: `(parameters..., x, y, w, lr) -> (loss, new parameters...)`."""

    def __init__(self, files: VariantFiles, *, threads: int) -> None:
        """Open the variant; the training graph is loaded with the first training.

        Args:
            files: of the engine `portable`.
            threads: of one operator; at least 1.
        """
        self._files = files
        self._threads = threads
        self._inference = Inference(files, threads)
        size = files.layout.size
        self._vectors: list[Float32] = [np.zeros(size, dtype=np.float32)]
        self._current = 0
        self._session: Any = None
        self._bindings: list[Any] = []

    @property
    def layout(self) -> Layout:
        """Layout of the flat vector."""
        return self._files.layout

    def set_vector(self, vector: Float32) -> None:
        """Replace all parameters; the vector is copied.

        Raises:
            ModelError: its length is wrong.
        """
        self.layout.views(vector)  # raises if the length is wrong
        self._vectors[self._current][:] = vector

    def vector(self) -> Float32:
        """A copy of all parameters; zeros before the first `set_vector`."""
        return self._vectors[self._current].copy()

    def train(self, examples: Examples, *, epochs: int, learning_rate: float, rng: np.random.Generator) -> Trained:
        """See `edgefl.engine.contract.Engine.train`."""
        examples = examples.shaped(self._files.input_shape, self._files.classes)
        if self._session is None:
            self._open()
        self._rate[()] = learning_rate

        def step(rows: npt.NDArray[np.int64]) -> float:
            return self._step(examples, rows)

        with converted("training failed"):
            trained = run_epochs(step, len(examples), self._files.batch, epochs, rng)
        check_finite(self._vectors[self._current])
        return trained

    def evaluate(self, examples: Examples) -> Evaluation:
        """See `edgefl.engine.contract.Engine.evaluate`."""
        return self._inference.evaluate(self._weights(), examples)

    def predict(self, x: Float32) -> Float32:
        """See `edgefl.engine.contract.Engine.predict`."""
        return self._inference.predict(self._weights(), x)

    def _weights(self) -> Mapping[str, Float32]:
        return self.layout.views(self._vectors[self._current])

    def _step(self, examples: Examples, rows: npt.NDArray[np.int64]) -> float:
        count = len(rows)
        # mode "clip" lets numpy write to `out` directly; all rows are in range. Padding repeats a real row, so that what is
        # masked is always something that the model can compute.
        np.take(examples.x, rows, axis=0, out=self._x[:count], mode="clip")
        np.take(examples.y, rows, out=self._y[:count], mode="clip")
        self._x[count:] = self._x[0]
        self._y[count:] = self._y[0]
        self._mask[:count] = 1.0
        self._mask[count:] = 0.0
        self._session.run_with_iobinding(self._bindings[self._current])
        self._current = 1 - self._current
        return float(self._loss)

    def _open(self) -> None:
        files = self._files
        session, graph = open_session(role_path(files, "train"), self._threads)
        names = tuple(tensor.name for tensor in files.layout.tensors)
        if graph.inputs != (*names, "x", "y", "w", "lr"):
            raise EngineError(f"graph {graph.name} does not belong to this layout", remedy="Push the model again")
        self._x: Float32 = np.zeros((files.batch, *files.input_shape), dtype=np.float32)
        self._y: npt.NDArray[np.int64] = np.zeros(files.batch, dtype=np.int64)
        self._mask: Float32 = np.ones(files.batch, dtype=np.float32)
        self._rate: Float32 = np.zeros((), dtype=np.float32)
        self._loss: Float32 = np.zeros((), dtype=np.float32)
        self._vectors.append(np.zeros(files.layout.size, dtype=np.float32))
        with converted(f"graph {graph.name} does not fit this variant", remedy="Push the model again"):
            self._bindings = [self._bound(session, source, 1 - source) for source in (0, 1)]
        self._session = session

    def _bound(self, session: Any, source: int, target: int) -> Any:
        """A binding that reads parameters from one vector and writes them to the other."""
        binding = session.io_binding()
        inputs: dict[str, npt.NDArray[Any]] = {
            "x": self._x,
            "y": self._y,
            "w": self._mask,
            "lr": self._rate,
            **self.layout.views(self._vectors[source]),
        }
        outputs = {name + SUFFIX_NEW: view for name, view in self.layout.views(self._vectors[target]).items()}
        for name, value in inputs.items():
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        for name, value in ({"loss": self._loss} | outputs).items():
            binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        return binding
