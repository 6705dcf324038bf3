"""A trial, as it runs in the trainer: whether a version loads, computes what it should, trains if it is to, and is good enough.

Model: three looks at the candidate, each with an engine of its own that is let go of before the next one, so that a trial takes
no more memory than training or evaluating does: `infer` with the golden file, `eval` with the device's own examples, and one
training step, unless the version is only served. Then, if there is a floor, the version before is evaluated on the same examples.

Rules: NaN fails wherever it appears. What cannot be asked is no fault of the version: without a golden file or without examples
that look is left out, and so is the comparison if the version before cannot be evaluated. At most `EXAMPLES` examples are looked
at, always the same, so that a board with much data does not evaluate for hours; without a comparison `FEW` are enough.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgefl.codec.golden import decode_golden, farthest
from edgefl.codec.weights import decode_weights
from edgefl.device.job import Side, TrialJob, Verdict
from edgefl.device.resources import peak_rss
from edgefl.engine.contract import Engine, VariantFiles
from edgefl.errors import DataError, EdgeflError, MessageError
from edgefl.examples import Examples
from edgefl.profile import trains
from edgefl.sources.parse import open_source
from edgefl.store.personal import with_personal

EXAMPLES = 512
FEW = 64
RATE = 1e-4
"""Learning rate of the training step: small, because its outcome does not matter."""
LOAD, GOLDEN, METRIC, MEMORY = "trial-load", "trial-golden", "trial-metric", "trial-memory"


def try_out(job: TrialJob, opened: Callable[[VariantFiles], Engine]) -> Verdict:
    """Run a trial; whatever goes wrong becomes its verdict."""
    began, version = time.monotonic(), job.candidate.version
    accuracy = before = None
    try:
        trial = _Trial(job, opened)
        code, reason = GOLDEN, trial.golden()
        if not reason:
            code, reason, accuracy, before = METRIC, *trial.metric()
        if not reason:
            code, reason = LOAD, trial.training()
    except EdgeflError as error:
        code, reason = LOAD, str(error)
    except MemoryError:
        code, reason = MEMORY, "the trial needs more memory than the profile allows"
    except OSError as error:
        code, reason = LOAD, f"reading failed: {error}"
    return Verdict(
        version=version,
        code=code if reason else "",
        reason=reason,
        accuracy=accuracy,
        before=before,
        seconds=time.monotonic() - began,
        peak_rss=peak_rss(),
    )


def variant_files(side: Side) -> VariantFiles:
    """A version's graphs as engines take them."""
    paths = {role: Path(path) for role, path in side.graphs.items()}
    return VariantFiles(side.engine, side.layout, side.input_shape, side.classes, side.batch, paths, side.recipe)


class _Trial:
    """One trial. Each look gives why the candidate has failed, or an empty text."""

    def __init__(self, job: TrialJob, opened: Callable[[VariantFiles], Engine]) -> None:
        self._job = job
        self._side = job.candidate
        self._opened = opened
        self._compares = job.before is not None and job.health.drop < 1.0
        self._examples = self._own()

    def golden(self) -> str:
        """The golden inputs give the golden outputs."""
        engine, side = self._engine(self._side), self._side
        if not self._job.golden:
            engine.predict(np.zeros((1, *side.input_shape), np.float32))
            return ""
        try:
            inputs, wanted = decode_golden(Path(self._job.golden).read_bytes(), side.input_shape, side.classes)
        except MessageError as error:
            return str(error)
        off = farthest(engine.predict(inputs), wanted, self._job.health.tolerance)
        if off > 1.0:
            return f"its outputs for the golden inputs are wrong: off by {off:.3g} times what is allowed"
        return ""

    def metric(self) -> tuple[str, float | None, float | None]:
        """It is finite on the device's own examples, and not too much worse than the version before."""
        if self._examples is None:
            return "", None, None
        found = self._engine(self._side).evaluate(self._examples)
        if not math.isfinite(found.loss):
            return "its loss on this device's data is not finite", None, None
        drop, accuracy, before = self._job.health.drop, found.accuracy, self._before()
        if accuracy is not None and before is not None and accuracy < before - drop:
            return (
                f"accuracy {accuracy:.4f} on this device's data after {before:.4f}: lower by more than {drop:g}",
                accuracy,
                before,
            )
        return "", accuracy, before

    def training(self) -> str:
        """It can do a training step, if it is to."""
        side, own = self._side, self._examples
        if not trains(side.engine):
            return ""
        if own is None:
            y = np.zeros(side.batch, np.int64) if side.recipe.classifies else np.zeros((side.batch, side.classes), np.float32)
            own = Examples(np.zeros((side.batch, *side.input_shape), np.float32), y)
        rows = own.take(np.arange(side.batch) % len(own))
        self._engine(side).train(rows, epochs=1, learning_rate=RATE, rng=np.random.default_rng(0))
        return ""

    def _own(self) -> Examples | None:
        """Some of the device's examples, shaped for the candidate; None if there are none that fit."""
        try:
            loaded, side = open_source(self._job.source).load(), self._side
            chosen = np.random.default_rng(0).permutation(len(loaded))[: EXAMPLES if self._compares else FEW]
            return loaded.take(np.sort(chosen)).shaped(side.input_shape, side.classes, side.recipe.loss)
        except DataError:
            return None

    def _before(self) -> float | None:
        """Accuracy of the version before, if it is asked for and can be had."""
        side = self._job.before
        if side is None or not self._compares or self._examples is None:
            return None
        try:
            return self._engine(side, Path(self._job.personal)).evaluate(self._examples).accuracy
        except EdgeflError:
            return None

    def _engine(self, side: Side, personal: Path | None = None) -> Engine:
        """A new engine with the version's weights."""
        vector = decode_weights(Path(side.weights).read_bytes(), side.layout)
        engine = self._opened(variant_files(side))
        engine.set_vector(with_personal(personal, side.version, side.layout, vector) if personal else vector)
        return engine
