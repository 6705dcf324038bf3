"""The `ort-training` engine: onnxruntime-training's on-device API, where its wheels exist (x86-64 Linux).

Model: a training graph (forward, loss, gradients), an optimiser graph and a nominal checkpoint (names and shapes without
values) are loaded by ONNX Runtime's C++ training API, which owns the parameters. They are set and read as one contiguous
buffer. That this buffer has our layout's order is not assumed: it is checked by name when the engine opens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.engine.contract import Evaluation, Trained, VariantFiles
from edgefl.engine.graphfile import check_graph, read_graph
from edgefl.engine.inference import Inference
from edgefl.engine.runtime import converted, onnxruntime, role_path, session_options, training_api
from edgefl.engine.training import check_finite, run_epochs
from edgefl.errors import EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32, Layout


class OrtTrainingEngine:
    """Trains with the artifacts `train`, `optimizer` and `checkpoint`."""

    def __init__(self, files: VariantFiles, *, threads: int) -> None:
        """Open the variant.

        Args:
            files: of the engine `ort-training`.
            threads: of one operator; at least 1.

        Raises:
            EngineError: no training build of ONNX Runtime here, or the files are damaged or do not belong together.
        """
        self._files = files
        self._inference = Inference(files, threads)
        api = training_api()
        train, optimizer = role_path(files, "train"), role_path(files, "optimizer")
        for path in (train, optimizer):
            check_graph(read_graph(path), training=True)
        with converted("the training artifacts do not load", remedy="Let the device fetch the model again"):
            # The state must live as long as the module, which holds only its C++ half.
            self._state = api.CheckpointState.load_checkpoint(str(role_path(files, "checkpoint")))
            self._module = api.Module(str(train), self._state, None, "cpu", session_options(threads))
            size = self._module.get_parameters_size(trainable_only=False)
        if size != files.layout.size:
            raise EngineError(
                "the training artifacts do not belong to this layout",
                expected=f"{files.layout.size} parameters",
                found=f"{size}",
                remedy="Push the model again",
            )
        self._check_order()
        self.set_vector(np.zeros(size, dtype=np.float32))
        with converted("the optimiser does not load", remedy="Let the device fetch the model again"):
            # Only now: made before a nominal checkpoint has values, an optimiser crashes the process at its first use.
            self._optimizer = api.Optimizer(str(optimizer), self._module)

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
        with converted("the parameters cannot be set"):
            value = onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
            self._module.copy_buffer_to_parameters(value._ortvalue, trainable_only=False)  # noqa: SLF001  the API takes the inner value

    def vector(self) -> Float32:
        """A copy of all parameters; zeros before the first `set_vector`."""
        with converted("the parameters cannot be read"):
            values: Float32 = self._module.get_contiguous_parameters(trainable_only=False).numpy()
        return values.copy()

    def train(self, examples: Examples, *, epochs: int, learning_rate: float, rng: np.random.Generator) -> Trained:
        """See `edgefl.engine.contract.Engine.train`."""
        examples = examples.shaped(self._files.input_shape, self._files.classes)

        def step(rows: npt.NDArray[np.int64]) -> float:
            loss = float(self._module(examples.x[rows], examples.y[rows]))
            self._optimizer.step()
            self._module.lazy_reset_grad()
            return loss

        with converted("training failed"):
            self._module.train()
            self._optimizer.set_learning_rate(learning_rate)
            trained = run_epochs(step, len(examples), self._files.batch, epochs, rng)
        check_finite(self.vector())
        return trained

    def evaluate(self, examples: Examples) -> Evaluation:
        """See `edgefl.engine.contract.Engine.evaluate`."""
        return self._inference.evaluate(self._weights(), examples)

    def predict(self, x: Float32) -> Float32:
        """See `edgefl.engine.contract.Engine.predict`."""
        return self._inference.predict(self._weights(), x)

    def _weights(self) -> Mapping[str, Float32]:
        return self.layout.views(self.vector())

    def _check_order(self) -> None:
        """Set a vector of distinct values and look each tensor up by name."""
        probe = np.arange(self.layout.size, dtype=np.float32)
        self.set_vector(probe)
        for name, expected in self.layout.views(probe).items():
            with converted(f"the training artifacts have no parameter {name!r}", remedy="Push the model again"):
                found: npt.NDArray[Any] = self._state.parameters[name].data
            if found.shape != expected.shape or not np.array_equal(found, expected):
                raise EngineError(
                    f"the training artifacts hold parameter {name!r} in another place", remedy="Push the model again"
                )
