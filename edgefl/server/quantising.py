"""Int8 where it wins: a variant gets a `serve` graph if that is worth its bytes.

Model. The `serve` graph (`edgefl.export.int8`) computes in int8 what the `infer` graph computes in float32 with the weights of
the version. It is kept if it is smaller than what it replaces in an application's memory (the graph with float32 weights) or
faster (one example, one thread, this machine), loses at most `drop` of accuracy on the hold-out examples, and fits the profile's
storage beside everything else. Otherwise the push says why and goes on without it.

Rule: it belongs to the weights that were pushed. A device serves with it until it has adopted the weights of a round, and with
these in float32 from then on (`edgefl.device.served`). A model with personal tensors gets none: its weights are the device's. See
ADR 0020.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgefl.engine.predictor import Predictor
from edgefl.errors import EngineError
from edgefl.examples import Examples
from edgefl.export.int8 import int8_graph
from edgefl.layout import Float32, Layout

MOST = 512
"""Calibration examples that are looked at."""
RUNS = 20
DROP = 0.01
"""Accuracy that int8 may lose, unless the push says otherwise."""


@dataclass(frozen=True, slots=True)
class Int8:
    """A `serve` graph that was kept.

    Attributes:
        length: bytes.
        accuracy: in [0, 1] on the hold-out examples.
        lost: accuracy of float32 minus this.
        speedup: time of float32 for one example, divided by its own, on the pushing machine.
    """

    length: int
    accuracy: float
    lost: float
    speedup: float


class Quantiser:
    """Makes and judges the `serve` graphs of a push.

    Args:
        calibration: typical examples, shaped for the model.
        holdout: others, to judge by, shaped too.
        classes: number of the model's outputs.
        drop: accuracy that may be lost, in [0, 1].
        on_progress: told what comes of it.
    """

    def __init__(
        self, calibration: Examples, holdout: Examples, classes: int, *, drop: float, on_progress: Callable[[str], None]
    ) -> None:
        self._calibration = calibration.take(np.linspace(0, len(calibration) - 1, min(MOST, len(calibration))).astype(np.int64)).x
        self._holdout = holdout
        self._classes = classes
        self._drop = drop
        self._say = on_progress
        self._known: dict[tuple[str, str], tuple[bytes, Int8] | None] = {}

    def graph(
        self, name: str, engine: str, infer: bytes, layout: Layout, vector: Float32, room: int
    ) -> tuple[bytes, Int8] | None:
        """The `serve` graph and what it is worth; None if it is not kept.

        Args:
            name: of the variant.
            engine: of the variant; both together tell the variants of a push apart.
            infer: the `infer` graph.
            layout: of the variant.
            vector: its weights as a device decodes them.
            room: bytes that are left of the profile's storage.
        """
        key = (name, engine)
        if key not in self._known:
            self._say(f"quantising {name} to int8")
            try:
                self._known[key] = self._worth(name, infer, layout, vector)
            except EngineError as error:
                self._say(f"{name} gets no int8 graph: {error}")
                self._known[key] = None
        kept = self._known[key]
        if kept and kept[1].length > room:
            self._say(f"{name} gets no int8 graph: its {kept[1].length} bytes do not fit beside the rest ({room} bytes are left)")
            return None
        return kept

    def _worth(self, name: str, infer: bytes, layout: Layout, vector: Float32) -> tuple[bytes, Int8] | None:
        exact = Predictor(infer, layout.views(vector), classes=self._classes, threads=1)
        data = int8_graph(infer, layout, vector, self._calibration)
        quantised = Predictor(data, {}, classes=self._classes, threads=1)
        before = right(exact.logits(self._holdout.x), self._holdout)
        after = right(quantised.logits(self._holdout.x), self._holdout)
        found = Int8(len(data), after, before - after, _speedup(exact, quantised, self._holdout.x[:1]))
        smaller = len(data) < len(infer) + 4 * layout.size
        if not found.lost <= self._drop:  # NaN too
            self._say(f"{name} gets no int8 graph: accuracy {before:.4f} would become {after:.4f}")
        elif not (smaller or found.speedup > 1.0):
            self._say(f"{name} gets no int8 graph: it would be neither smaller nor faster")
        else:
            return data, found
        return None


def right(logits: Float32, examples: Examples) -> float:
    """Share of right answers, as the `eval` graph counts them: the class, or each of several yes and no; NaN is no answer."""
    if not np.isfinite(logits).all():
        return float("nan")
    if examples.y.ndim == 1:
        return float((logits.argmax(1) == examples.y).mean())
    return float(((logits > 0.0) == (examples.y > 0.5)).mean())


def _speedup(exact: Predictor, quantised: Predictor, x: Float32) -> float:
    """How many times faster; the fastest of several runs of each, by turns, so that other work on this machine meets both."""
    fastest = [float("inf"), float("inf")]
    for _ in range(RUNS):
        for place, predictor in enumerate((exact, quantised)):
            began = time.perf_counter()
            predictor.logits(x)
            fastest[place] = min(fastest[place], time.perf_counter() - began)
    return fastest[0] / fastest[1]
