"""The `ort-training` engine: onnxruntime-training's on-device API, where its wheels exist (x86-64 Linux).

Model: a training graph (forward, loss, gradients), an optimiser graph and a nominal checkpoint (names and shapes without
values) are loaded by ONNX Runtime's C++ training API, which owns the parameters. They are set and read as one contiguous
buffer. That this buffer has our layout's order is not assumed: it is checked by name when the engine opens.

What its optimisers lack is done on the gradients between the backward pass and the optimiser's step: the velocity of momentum,
and FedProx's term. AdamW keeps its moments inside; it is opened anew for every training, which is what makes it start afresh.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.engine.contract import Evaluation, Trained, VariantFiles
from edgefl.engine.graphfile import check_graph, read_graph
from edgefl.engine.inference import Inference
from edgefl.engine.runtime import converted, onnxruntime, role_path, session_options, training_api
from edgefl.engine.training import check_finite, check_mutual, check_proximal, run_epochs
from edgefl.errors import EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32, Layout
from edgefl.recipe import MOMENTUM


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
        self._api = training_api()
        self._options = session_options(threads)
        self._buffer: Layout | None = None
        for role in ("train", "optimizer"):
            check_graph(read_graph(role_path(files, role)), training=True)
        self._open()
        self._check_order()
        self.set_vector(np.zeros(files.layout.size, dtype=np.float32))
        self._open_optimizer()

    def _open(self) -> None:
        files = self._files
        with converted("the training artifacts do not load", remedy="Let the device fetch the model again"):
            # The state must live as long as the module, which holds only its C++ half.
            self._state = self._api.CheckpointState.load_checkpoint(str(role_path(files, "checkpoint")))
            self._module = self._api.Module(str(role_path(files, "train")), self._state, None, "cpu", self._options)
            size = self._module.get_parameters_size(trainable_only=False)
        if size != files.layout.size:
            raise EngineError(
                "the training artifacts do not belong to this layout",
                expected=f"{files.layout.size} parameters",
                found=f"{size}",
                remedy="Push the model again",
            )

    def _open_optimizer(self) -> None:
        with converted("the optimiser does not load", remedy="Let the device fetch the model again"):
            # Only with values: made before a nominal checkpoint has some, an optimiser crashes the process at its first use.
            self._optimizer = self._api.Optimizer(str(role_path(self._files, "optimizer")), self._module)

    @property
    def layout(self) -> Layout:
        """Layout of the flat vector."""
        return self._files.layout

    def set_vector(self, vector: Float32) -> None:
        """Replace all parameters; the vector is copied.

        Raises:
            ModelError: its length is wrong.
        """
        views = self.layout.views(vector)  # raises if the length is wrong
        if self._buffer is not None:
            vector = self._buffer.flatten(views)
        with converted("the parameters cannot be set"):
            value = onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
            self._module.copy_buffer_to_parameters(value._ortvalue, trainable_only=False)  # noqa: SLF001  the API takes the inner value

    def vector(self) -> Float32:
        """A copy of all parameters; zeros before the first `set_vector`."""
        with converted("the parameters cannot be read"):
            values: Float32 = self._module.get_contiguous_parameters(trainable_only=False).numpy()
        return values.copy() if self._buffer is None else self.layout.flatten(self._buffer.views(values))

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
        if weights is not None:
            raise EngineError("the engine ort-training knows no weights of examples", expected="the portable engine")
        recipe = self._files.recipe
        check_proximal(recipe, proximal)
        check_mutual(recipe, mutual)
        examples = examples.shaped(self._files.input_shape, self._files.classes, recipe.loss)
        if recipe.optimizer == "adamw":
            self._start_afresh()
        start = self._weights() if proximal else {}
        velocity: dict[str, Float32] = {}
        left = self.layout.views(kept) if kept is not None else {}

        def step(rows: npt.NDArray[np.int64]) -> float:
            loss = float(self._module(examples.x[rows], examples.y[rows]))
            self._mask_gradients(left)
            self._change_gradients(start, proximal, velocity)
            self._optimizer.step()
            self._module.lazy_reset_grad()
            return loss

        with converted("training failed"):
            self._module.train()
            self._optimizer.set_learning_rate(learning_rate)
            trained = run_epochs(step, len(examples), self._files.batch, epochs, rng)
        check_finite(self.vector())
        return trained

    def _start_afresh(self) -> None:
        vector = self.vector()
        del self._optimizer, self._module, self._state
        self._open()
        self.set_vector(vector)
        self._open_optimizer()

    def _mask_gradients(self, left: Mapping[str, Float32]) -> None:
        """Let no gradient move what is 0 and stays so: then no optimiser does."""
        for tensor in self.layout.trained if left else ():
            gradient = self._state.parameters[tensor.name].grad  # a view of the runtime's own buffer
            gradient *= left[tensor.name]

    def _change_gradients(self, start: Mapping[str, Float32], proximal: float, velocity: dict[str, Float32]) -> None:
        """Add the proximal term, then replace the gradients by the velocity."""
        momentum = self._files.recipe.optimizer == "momentum"
        for tensor in self.layout.trained if proximal or momentum else ():
            parameter = self._state.parameters[tensor.name]
            gradient = parameter.grad  # a view of the runtime's own buffer
            if proximal:
                gradient += np.float32(proximal) * (parameter.data - start[tensor.name])
            if momentum:
                kept = velocity.setdefault(tensor.name, np.zeros_like(gradient))
                kept *= np.float32(MOMENTUM)
                kept += gradient
                gradient[...] = kept

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
        return self.layout.views(self.vector())

    def _check_order(self) -> None:
        """Set a vector of distinct values and look each tensor up by name."""
        probe = np.arange(self.layout.size, dtype=np.float32)
        self.set_vector(probe)
        if len(self.layout.trained) < len(self.layout.tensors):  # then the runtime's buffer has an order of its own
            starts = {tensor.name: self._first_value(tensor.name) for tensor in self.layout.tensors}
            self._buffer = Layout(tuple(sorted(self.layout.tensors, key=lambda tensor: starts[tensor.name])))
            self.set_vector(probe)
        for name, expected in self.layout.views(probe).items():
            found = self._values(name)
            if found.shape != expected.shape or not np.array_equal(found, expected):
                raise EngineError(
                    f"the training artifacts hold parameter {name!r} in another place", remedy="Push the model again"
                )

    def _first_value(self, name: str) -> float:
        return float(self._values(name).reshape(-1)[0])

    def _values(self, name: str) -> npt.NDArray[Any]:
        with converted(f"the training artifacts have no parameter {name!r}", remedy="Push the model again"):
            values: npt.NDArray[Any] = self._state.parameters[name].data
        return values
