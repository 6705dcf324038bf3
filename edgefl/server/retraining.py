"""Weights at rest for a push: structures that only just do not fit are retrained into few values, which take less room.

Model. A structure is pruned weight by weight and its values are shared (`edgefl.retrain`), towards the whole model's outputs or
towards labels, and written as a codebook: a small part of an int4 file. That file is what is installed. A board that only
answers holds nothing else, so that the model which fits it is as many times larger, and may have it shorter still: pruned
further, or in ternary (`edgefl.compress.forms`, ADR 0026).

On a board that trains it is also what the first round begins with. Later rounds are sent in int4
(`edgefl.codec.precision.in_rounds`), because the server makes them anew of the parent and of what retraining has changed
(`edgefl.server.variants.Healed`); they and the residuals are what most of a footprint is. So there a codebook lets a somewhat
larger structure fit, makes one that is pruned arrive better than it was cut, and makes a push many times shorter; it does not
make a board hold ten times the model. See ADR 0025.

Rules: retrained is what could be stored as a codebook, is refused by no run (`edgefl.compress.search`: an estimate of memory or
step alone refuses nothing) and is cut at no greater cost than what the profile would get otherwise; the `MOST` most accurate
ones, each in the longest form that is hoped to fit, and in the next one if that turns out not to; nothing where the profile is
within the noise of the best already. What is not shorter than int4 is not offered. The held-out examples that variants are
judged by must not be among those that they are retrained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgefl.codec.weights import Precision, decode_weights, encode_weights, weights_length
from edgefl.compress.budget import Candidate, Resting
from edgefl.compress.forms import CODEBOOK, Form, forms
from edgefl.compress.planner import Budget
from edgefl.compress.search import not_refused
from edgefl.errors import DataError, ModelError
from edgefl.examples import Examples, unlabelled
from edgefl.export.models import ModelSource
from edgefl.export.tensors import load_vector
from edgefl.layout import Float32
from edgefl.recipe import Loss
from edgefl.retrain.centroids import Sharing
from edgefl.retrain.compression import Compression, compressed
from edgefl.retrain.objective import Labels, Objective, Outputs
from edgefl.retrain.pruning import Pruning
from edgefl.retrain.training import Schedule
from edgefl.server.cuts import Cut
from edgefl.server.sensing import Offered

MOST = 2
"""Structures that are retrained for one profile."""
COMMON = 0.05
"""Part of the held-out examples that may be among the others by chance: some recordings repeat themselves."""
STEPS = 1000
SHARED = 4
"""Steps of training shared values are one part in so many of the others."""
RATE, SHARED_RATE, ROUNDED_RATE = 1e-3, 2e-4, 5e-4


@dataclass(frozen=True, slots=True)
class Retraining:
    """How a push may retrain.

    Attributes:
        examples: to retrain on; not the hold-out.
        labels: whether towards their labels; otherwise towards the whole model's outputs, and labels are not looked at.
        steps: batches of 128 while weights are pruned, at least 1; for shared values a quarter as many follow, for rounded ones
            as many.
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
        self._retraining, self._loss = retraining, source.recipe.loss
        self._say = say
        self._done: set[str] = set()

    def wanted(self, offers: Sequence[Candidate], winner: Candidate | None, budget: Budget) -> tuple[Candidate, ...]:
        """What is worth retraining for a profile, the best first, each structure in one form.

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
        hoped = [self._hoped(one, offers, budget) for one in coarse]
        best = sorted((one for one in hoped if one), key=lambda one: -(one.accuracy or 0.0))[:MOST]
        return tuple(one for one in best if one.name not in self._done)

    def _hoped(self, one: Candidate, offers: Sequence[Candidate], budget: Budget) -> Candidate | None:
        """A structure in the longest form that fits, or is hoped to; None if none is."""
        there = {offer.name: offer for offer in offers if offer.form}
        tried = []
        for form in forms(trains=one.trains):
            made = replace(one, precision=form.precision, at_rest=int(form.hoped * one.weight_bytes), form=form)
            if made.name in there or made.name not in self._done:
                tried.append(there.get(made.name, made))
        return next(iter(not_refused(tried, offers, budget)), None)

    def retrained(self, wanted: Candidate) -> tuple[bytes, Resting] | None:
        """The weights file of a structure in a form and what it is worth; None if it is not shorter than int4."""
        form = wanted.form or CODEBOOK
        cut = self._offered.cuts[wanted.structure.name]
        name, layout = cut.structure.name, cut.structure.layout
        self._done.add(wanted.name)
        module = cut.source.build(cut.structure.width)
        load_vector(module, cut.slice(self._parent))
        self._say(f"retraining {name} on {len(self._examples)} examples")
        said = f"retraining {name}, "
        how = compression(self._retraining, self._loss, form)
        vector = compressed(module, self._examples, how, original=self._teacher, on_progress=lambda text: self._say(said + text))
        data = encode_weights(vector, layout, form.precision)
        if len(data) > weights_length(layout, Precision.INT4):
            self._say(f"{name} is no smaller as {form.name} than in int4")
            return None
        return data, Resting(len(data), self._worth(cut, decode_weights(data, layout), form), form)

    def _worth(self, cut: Cut, vector: Float32, form: Form) -> float:
        """Accuracy as the planner predicts it."""
        judge = self._judge
        lost = judge.lost(cut.source, cut.structure.width, vector)
        before = 100 * self._offered.drops[cut.structure.name]
        self._say(f"{cut.structure.name} costs {100 * lost:.2f} points of accuracy retrained as {form.name}, {before:.2f} cut")
        return judge.baseline.predicted([lost])


def compression(retraining: Retraining, loss: Loss, form: Form) -> Compression:
    """How a push retrains a model of this loss into a form."""
    objective: Objective = Labels(loss) if retraining.labels else Outputs()
    pruning, pruned = Pruning(form.sparsity), Schedule(retraining.steps, rate=RATE)
    if form.precision != Precision.CODEBOOK:
        rounded = Schedule(retraining.steps, rate=ROUNDED_RATE)
        return Compression(pruning, pruned, None, rounded, objective, rounding=form.precision)
    shared = -(-retraining.steps // SHARED)
    return Compression(pruning, pruned, Sharing(), Schedule(shared, rate=SHARED_RATE), objective)


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
