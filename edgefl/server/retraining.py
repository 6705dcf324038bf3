"""Weights at rest for a push: structures that only just do not fit are retrained into few values, which take less room.

Model. A structure is pruned weight by weight and its values are shared (`edgefl.retrain`), towards the whole model's outputs or
towards labels, and written as a codebook: a small part of an int4 file. That file is what is installed, and what the first round
begins with. Later rounds are sent in int4 (`edgefl.codec.precision.in_rounds`), because the server makes them anew of the parent
and of what retraining has changed (`edgefl.server.variants.Healed`); they and the residuals are what most of a footprint is. So a
codebook lets a somewhat larger structure fit, makes one that is pruned arrive better than it was cut, and makes a push many times
shorter; it does not make a board hold ten times the model. See ADR 0025.

Rules: retrained is what could be stored as a codebook, is refused by no run (`edgefl.compress.search`: an estimate of memory or
step alone refuses nothing) and is cut at no greater cost than what the profile would get otherwise; the `MOST` most accurate
ones; nothing where the profile is within the noise of the best already. A codebook that is not shorter than int4 is not offered.
Ternary weights are not offered at all: a pruned codebook is smaller and more accurate (docs/benchmarks.md). The held-out examples
that variants are judged by must not be among those that they are retrained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgefl.codec.weights import Precision, decode_weights, encode_weights, weights_length
from edgefl.compress.budget import Candidate, Resting
from edgefl.compress.planner import Budget
from edgefl.compress.search import not_refused
from edgefl.errors import DataError, ModelError
from edgefl.examples import Examples, unlabelled
from edgefl.export.models import ModelSource
from edgefl.export.tensors import load_vector
from edgefl.layout import Float32
from edgefl.retrain.centroids import Sharing
from edgefl.retrain.compression import Compression, compressed
from edgefl.retrain.objective import Labels, Objective, Outputs
from edgefl.retrain.pruning import Pruning
from edgefl.retrain.training import Schedule
from edgefl.server.cuts import Cut
from edgefl.server.sensing import Offered

MOST = 2
"""Structures that are retrained for one profile."""
SPARSITY = 0.8
"""Of a codebook's weights; its file is a small part of the footprint already, and accuracy counts more than the rest of it."""
HOPED = 0.4
"""Part of int4's file that a codebook is expected to take at most, before it is there."""
COMMON = 0.05
"""Part of the held-out examples that may be among the others by chance: some recordings repeat themselves."""
STEPS = 1000
SHARED = 4
"""Steps of training shared values are one part in so many of the others."""
RATE, SHARED_RATE = 1e-3, 2e-4


@dataclass(frozen=True, slots=True)
class Retraining:
    """How a push may retrain.

    Attributes:
        examples: to retrain on; not the hold-out.
        labels: whether towards their labels; otherwise towards the whole model's outputs, and labels are not looked at.
        steps: batches of 128 while weights are pruned, at least 1; a quarter as many follow for the shared values.
    """

    examples: Examples
    labels: bool = False
    steps: int = STEPS

    def __post_init__(self) -> None:
        if self.steps < 1 or not len(self.examples):
            raise DataError("a retraining that cannot be", expected="examples, and steps from 1", found=f"{self.steps} steps")


class Retrainer:
    """Retrains structures of one push, each once.

    Args:
        source: the model.
        parent: its weights at full width.
        offered: its structures, measured on held-out examples.
        retraining: on what and how long.
        say: told what is being done, a line at a time.

    Raises:
        DataError: the examples do not fit the model.
        ModelError: nothing was measured, so that nothing says what retraining is worth.
    """

    def __init__(
        self, source: ModelSource, parent: Float32, offered: Offered, retraining: Retraining, say: Callable[[str], None]
    ) -> None:
        if offered.judge is None:
            raise ModelError(
                "nothing says what retraining is worth", found=offered.basis, remedy="Push a trained model with --holdout"
            )
        self._examples = _shaped(retraining.examples, source, labels=retraining.labels)
        self._teacher = source.build()
        load_vector(self._teacher, parent)
        self._parent = parent
        self._offered, self._judge = offered, offered.judge
        self._compression = compression(retraining, source)
        self._say = say
        self._done: set[str] = set()

    def wanted(self, offers: Sequence[Candidate], winner: Candidate | None, budget: Budget) -> tuple[Cut, ...]:
        """The structures that are worth retraining for a profile, the best first.

        Args:
            offers: of an engine, in order of preference.
            winner: what the profile gets without retraining, None for nothing.
            budget: of the profile.
        """
        highest = max((one.accuracy or 0.0 for one in offers), default=0.0)
        if winner is not None and highest - (winner.accuracy or 0.0) <= self._judge.baseline.noise:
            return ()
        drops = self._offered.drops
        most = 1.0 if winner is None else drops[winner.structure.name]
        coarse = [one for one in offers if one.precision == Precision.INT4 and drops[one.structure.name] <= most]
        hoped = [replace(one, precision=Precision.CODEBOOK, at_rest=int(HOPED * one.weight_bytes)) for one in coarse]
        best = sorted(not_refused(hoped, offers, budget), key=lambda one: -(one.accuracy or 0.0))[:MOST]
        return tuple(self._offered.cuts[one.structure.name] for one in best if one.structure.name not in self._done)

    def retrained(self, cut: Cut) -> tuple[bytes, Resting] | None:
        """The codebook file of a structure and what it is worth; None if it is not shorter than int4."""
        name, layout = cut.structure.name, cut.structure.layout
        self._done.add(name)
        module = cut.source.build(cut.structure.width)
        load_vector(module, cut.slice(self._parent))
        self._say(f"retraining {name} on {len(self._examples)} examples")
        said = f"retraining {name}, "
        vector = compressed(
            module, self._examples, self._compression, original=self._teacher, on_progress=lambda text: self._say(said + text)
        )
        data = encode_weights(vector, layout, Precision.CODEBOOK)
        if len(data) > weights_length(layout, Precision.INT4):
            self._say(f"{name} is no smaller as a codebook than in int4")
            return None
        return data, Resting(len(data), self._worth(cut, decode_weights(data, layout)))

    def _worth(self, cut: Cut, vector: Float32) -> float:
        """Accuracy as the planner predicts it."""
        judge = self._judge
        lost = judge.lost(cut.source, cut.structure.width, vector)
        before = 100 * self._offered.drops[cut.structure.name]
        self._say(f"{cut.structure.name} costs {100 * lost:.2f} points of accuracy retrained, {before:.2f} cut")
        return judge.baseline.predicted([lost])


def compression(retraining: Retraining, source: ModelSource) -> Compression:
    """How a push retrains."""
    objective: Objective = Labels(source.recipe.loss) if retraining.labels else Outputs()
    shared = -(-retraining.steps // SHARED)
    return Compression(
        Pruning(SPARSITY), Schedule(retraining.steps, rate=RATE), Sharing(), Schedule(shared, rate=SHARED_RATE), objective
    )


def check_apart(retraining: Retraining | None, holdout: Examples | None) -> None:
    """Refuse a retraining without a hold-out, or on the hold-out itself. Raises DataError."""
    if retraining is None:
        return
    if holdout is None:
        raise DataError("retraining cannot be judged", expected="hold-out examples", found="none", remedy="Give --holdout")
    judged, taught = _rows(holdout), _rows(retraining.examples)
    if (both := len(judged & taught)) > COMMON * len(judged):
        raise DataError(
            "what variants are judged by must not be what they are retrained on",
            expected="other examples to retrain on than to hold out",
            found=f"{both} of {len(judged)} held-out examples in both",
            remedy="Give --retrain another source than --holdout",
        )


def _rows(examples: Examples) -> set[int]:
    return {hash(row.tobytes()) for row in examples.x}


def _shaped(examples: Examples, source: ModelSource, *, labels: bool) -> Examples:
    if labels:
        return examples.shaped(source.input_shape, source.classes, source.recipe.loss)
    nameless = Examples(examples.x, np.zeros(len(examples), dtype=np.int64))
    return unlabelled(nameless.shaped(source.input_shape, source.classes).x)
