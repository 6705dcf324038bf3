"""A model for an application on the board: predictions with what the agent holds, always the newest.

    from edgefl.device.model import Model

    model = Model.open("/etc/edgefl", "digits")
    found = model.predict(x)                 # float32, shape (n, *input_shape)
    found.classes, found.probabilities, found.version

Model. Every request begins with a look whether the agent has activated another version or adopted newer weights (three calls of
stat, no thread). If so, the thread that has noticed loads it while others go on with the old one; then one assignment switches.
A request runs to its end on the session it began with, which lives as long as somebody uses it. Files may be deleted at any time:
nothing is read from disk for a loaded version.

Rules:

* An application is never without a model because of an update: if the new version cannot be loaded, the old one goes on, the log
  says why, and it is tried again after `RETRY_SECONDS` or when something changes.
* For one thread versions never go back, except when the device goes back to an earlier version on purpose.
* This process loads ONNX Runtime and numpy, neither torch nor onnx, and writes nothing.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgefl.device.config import load_bundle
from edgefl.device.prediction import Prediction
from edgefl.device.served import Marks, Served, Shelf
from edgefl.engine.predictor import Predictor
from edgefl.errors import DataError, EdgeflError, EngineError, StoreError
from edgefl.layout import Float32
from edgefl.sources.arrays import examples_of
from edgefl.wire.releases import Manifest

log = logging.getLogger("edgefl.device")

RETRY_SECONDS = 5.0
"""From a version that could not be loaded to the next attempt, while nothing changes on disk."""
ATTEMPTS = 5
"""Times that files may be deleted under us in a row: each time the agent has activated something."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A version that is ready: everything that a request needs."""

    manifest: Manifest
    round: int
    graph: bytes
    predictor: Predictor
    quantised: bool


class Model:
    """A model that the device holds; may be used by several threads.

    Args:
        shelf: where it lies.
        threads: of one operator; at least 1.

    Raises:
        EdgeflError: it cannot be loaded.
    """

    def __init__(self, shelf: Shelf, *, threads: int = 1) -> None:
        self._shelf = shelf
        self._threads = threads
        self._switching = threading.Lock()
        self._retry_at = 0.0
        self._marks: Marks = shelf.marks()
        self._loaded: _Loaded | None = None
        self._marks, self._loaded = self._load()

    @classmethod
    def open(cls, bundle: str | Path, name: str, *, threads: int = 1) -> Self:
        """The model of this name on the device whose bundle this is.

        Args:
            bundle: directory of `device.toml`. The state is where it says, or in the directory that STATE_DIRECTORY names.
            name: of the model in the fleet.
            threads: of one operator; at least 1.

        Raises:
            ConfigError: there is no such bundle.
            InputError: no model can have this name.
            StoreError: the device holds no such model, or a file of it is missing or damaged.
            PeerError: what is kept is another fleet's or another profile's, or damaged.
            EngineError: it does not run here.
        """
        return cls(Shelf(load_bundle(Path(bundle), unclaimed=True), name), threads=threads)

    @property
    def version(self) -> int:
        """Of the model that the next request will use, if nothing changes until then."""
        return self._newest().manifest.version

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self._newest().manifest.input_shape

    def predict(self, x: npt.ArrayLike) -> Prediction:
        """What the newest version says of some inputs.

        Args:
            x: numbers, shape `(n, ...)` with n at least 1, with as many values for each example as the model takes. As in a
                source of examples, uint8 becomes float32 in [0, 1].

        Raises:
            DataError: the inputs do not fit the model, or are not finite.
            EngineError: the runtime failed.
        """
        loaded = self._newest()
        manifest = loaded.manifest
        inputs = _shaped(np.asarray(x), manifest.input_shape)
        logits = loaded.predictor.logits(inputs)
        return Prediction(logits, manifest.recipe.loss, manifest.version, loaded.round, loaded.quantised)

    def _newest(self) -> _Loaded:
        """What is to be used now; a version that cannot be loaded is as if it were not there."""
        loaded, now = self._loaded, time.monotonic()
        stale = self._shelf.marks() != self._marks or (self._retry_at and now >= self._retry_at)
        if stale and self._switching.acquire(blocking=False):
            try:
                self._switch(now)
            finally:
                self._switching.release()
            loaded = self._loaded
        if loaded is None:
            raise EngineError(f"{self._shelf.name} is not loaded")
        return loaded

    def _switch(self, now: float) -> None:
        marks = self._shelf.marks()
        if marks == self._marks and not (self._retry_at and now >= self._retry_at):
            return  # another thread has done it
        try:
            self._marks, self._loaded = self._load()
            self._retry_at = 0.0
        except (EdgeflError, MemoryError) as error:
            self._marks, self._retry_at = marks, now + RETRY_SECONDS
            log.warning("%s: a new version cannot be served yet: %s", self._shelf.name, error)

    def _load(self) -> tuple[Marks, _Loaded]:
        """Read what the device holds and load it; as often as needed, if files go while they are read."""
        for _ in range(ATTEMPTS):
            marks = self._shelf.marks()
            try:
                return marks, self._ready(self._shelf.read())
            except StoreError as error:
                if self._shelf.marks() == marks:
                    return marks, self._ready(self._without_order(error))
        raise StoreError(f"{self._shelf.name} changes faster than it can be read", remedy="Try again")

    def _without_order(self, damaged: StoreError) -> Served:
        """A version's own weights where adopted ones are damaged, as the agent does; raises if a request could go on without."""
        served = self._shelf.read(adopted=False)
        if self._loaded is not None and self._loaded.manifest.version == served.manifest.version:
            raise damaged
        log.warning("%s: serving the weights that came with the version: %s", self._shelf.name, damaged)
        return served

    def _ready(self, served: Served) -> _Loaded:
        try:
            return self._opened(served)
        except EngineError as error:
            if served.weights is not None:
                raise
            log.warning("%s: the int8 graph does not run here: %s", self._shelf.name, error)
        return self._opened(self._shelf.exact(served.manifest, None))

    def _opened(self, served: Served) -> _Loaded:
        manifest, old, (sha256, graph) = served.manifest, self._loaded, served.graph
        weights = {} if served.weights is None else manifest.layout.views(served.weights)
        if old is not None and old.graph == sha256:
            predictor = old.predictor.with_weights(weights)
        else:
            predictor = Predictor(graph, weights, classes=manifest.classes, threads=self._threads)
        return _Loaded(manifest, served.round, sha256, predictor, served.weights is None)


def _shaped(x: npt.NDArray[Any], shape: tuple[int, ...]) -> Float32:
    inputs = examples_of(x, None, "the request").x
    wanted = int(np.prod(shape))
    if inputs[0].size != wanted:
        raise DataError(
            "the inputs do not fit the model",
            expected=f"{wanted} values for each example, as {'x'.join(map(str, shape))}",
            found=f"{inputs[0].size}",
        )
    return inputs.reshape(len(inputs), *shape)
