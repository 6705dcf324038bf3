"""The portable engine: the whole training step is one ONNX graph of standard operators, run by any ONNX Runtime.

Model: two flat parameter vectors take turns. A step reads one and writes the other; the graph's tensors are views of them,
bound once, so that between steps Python copies nothing but the mini-batch. (One vector for both would be wrong: an operator
may still read a weight that the update has already overwritten.) The optimiser's state is one vector that is read and written in
place: nothing but the element-wise update that replaces it reads it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.engine.contract import Evaluation, Trained, VariantFiles
from edgefl.engine.inference import Inference
from edgefl.engine.runtime import converted, open_session, role_path
from edgefl.engine.signature import SCALARS, SUFFIX_NEW, SUFFIX_START, start_layout, state_layout, step_inputs
from edgefl.engine.training import check_finite, check_mutual, check_proximal, run_epochs
from edgefl.errors import EngineError
from edgefl.examples import Examples, Targets
from edgefl.layout import Float32, Layout, Tensor
from edgefl.recipe import corrections


class PortableEngine:
    """Trains with the graph `train`, whose inputs and outputs `edgefl.engine.signature` names."""

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
        for own in self._vectors:  # in both: a step writes the tensors that it changes, and frozen ones are in neither
            own[:] = vector

    def vector(self) -> Float32:
        """A copy of all parameters; zeros before the first `set_vector`."""
        return self._vectors[self._current].copy()

    def train(
        self,
        examples: Examples,
        *,
        epochs: int,
        learning_rate: float,
        rng: np.random.Generator,
        proximal: float = 0.0,
        mutual: float = 1.0,
        weights: Float32 | None = None,
        kept: Float32 | None = None,
    ) -> Trained:
        """See `edgefl.engine.contract.Engine.train`."""
        check_proximal(self._files.recipe, proximal)
        check_mutual(self._files.recipe, mutual)
        examples = examples.shaped(self._files.input_shape, self._files.classes, self._files.recipe.loss)
        if self._session is None:
            self._open()
        self._scalars["lr"][()] = learning_rate
        self._scalars["mu"][()] = proximal
        self._scalars["mutual"][()] = mutual
        self._state[:] = 0.0
        self._steps = 0
        for name, view in self._start_views.items():
            view[...] = self._weights()[name.removesuffix(SUFFIX_START)]

        def step(rows: npt.NDArray[np.int64]) -> float:
            loss = self._step(examples, rows, weights)
            if kept is not None:  # every optimiser here goes coordinate by coordinate: as good as gradients that are 0
                self._vectors[self._current] *= kept
            return loss

        with converted("training failed"):
            trained = run_epochs(step, len(examples), self._files.batch, epochs, rng)
        check_finite(self._vectors[self._current])
        return trained

    def evaluate(self, examples: Examples) -> Evaluation:
        """See `edgefl.engine.contract.Engine.evaluate`."""
        return self._inference.evaluate(self._weights(), examples)

    def scores(self, examples: Examples) -> Float32:
        """See `edgefl.engine.contract.Engine.scores`."""
        return self._inference.scores(self._weights(), examples)

    def predict(self, x: Float32) -> Float32:
        """See `edgefl.engine.contract.Engine.predict`."""
        return self._inference.predict(self._weights(), x)

    def _weights(self) -> Mapping[str, Float32]:
        return self.layout.views(self._vectors[self._current])

    def _step(self, examples: Examples, rows: npt.NDArray[np.int64], weights: Float32 | None) -> float:
        count = len(rows)
        # mode "clip" lets numpy write to `out` directly; all rows are in range. Padding repeats a real row, so that what is
        # masked is always something that the model can compute.
        np.take(examples.x, rows, axis=0, out=self._x[:count], mode="clip")
        np.take(examples.y, rows, axis=0, out=self._y[:count], mode="clip")
        self._x[count:] = self._x[0]
        self._y[count:] = self._y[0]
        self._mask[:count] = 1.0 if weights is None else weights[rows]
        self._mask[count:] = 0.0
        self._steps += 1
        self._scalars["c1"][()], self._scalars["c2"][()] = corrections(self._steps)
        self._session.run_with_iobinding(self._bindings[self._current])
        self._current = 1 - self._current
        return float(self._loss)

    def _open(self) -> None:
        files = self._files
        session, graph = open_session(role_path(files, "train"), self._threads)
        if graph.inputs != step_inputs(files.layout, files.recipe):
            raise EngineError(f"graph {graph.name} does not belong to this layout", remedy="Push the model again")
        labels = files.recipe.labels
        self._x: Float32 = np.zeros((files.batch, *files.input_shape), dtype=np.float32)
        self._y: Targets = np.zeros(files.batch, np.int64) if labels else np.zeros((files.batch, files.classes), np.float32)
        self._mask: Float32 = np.ones(files.batch, dtype=np.float32)
        self._scalars: dict[str, Float32] = {name: np.zeros((), dtype=np.float32) for name in SCALARS}
        self._loss: Float32 = np.zeros((), dtype=np.float32)
        self._state, self._state_views = _flat(state_layout(files.layout, files.recipe))
        self._start, self._start_views = _flat(start_layout(files.layout, files.recipe))
        self._vectors.append(self._vectors[0].copy())
        with converted(f"graph {graph.name} does not fit this variant", remedy="Push the model again"):
            self._bindings = [self._bound(session, source, 1 - source) for source in (0, 1)]
        self._session = session

    def _bound(self, session: Any, source: int, target: int) -> Any:
        """A binding that reads parameters from one vector and writes them to the other."""
        binding = session.io_binding()
        files = self._files
        inputs: dict[str, npt.NDArray[Any]] = {
            "x": self._x,
            "y": self._y,
            "w": self._mask,
            **self._scalars,
            **self.layout.views(self._vectors[source]),
            **self._state_views,
            **self._start_views,
        }
        changed = {tensor.name for tensor in files.layout.tensors if tensor.role != "frozen"}
        views = {name: view for name, view in self.layout.views(self._vectors[target]).items() if name in changed}
        outputs = {name + SUFFIX_NEW: view for name, view in (views | dict(self._state_views)).items()}
        for name in step_inputs(files.layout, files.recipe):
            value = inputs[name]
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        for name, value in ({"loss": self._loss} | outputs).items():
            binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        return binding


def _flat(tensors: tuple[Tensor, ...]) -> tuple[Float32, Mapping[str, Float32]]:
    """A vector of zeros for these tensors, and a view of it for each."""
    if not tensors:
        return np.zeros(0, dtype=np.float32), {}
    layout = Layout(tensors)
    vector = np.zeros(layout.size, dtype=np.float32)
    return vector, layout.views(vector)
