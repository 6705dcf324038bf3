"""What a model's accuracy does when something is cut off, measured in torch on held-out examples.

Model: at most `SAMPLE` examples, evenly spread over what was held out, so that a push stays quick. Every structure that is
offered is measured itself, in float32; the drop of each precision is measured at the full model and added. Which pruned
structures are offered follows from the drop of each group alone (`edgefl.compress.sensitivity`).

Rule: a model that knows hardly more than chance, or whose loss has no right answers, is not measured, and the planner is told so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgefl.codec.weights import Precision, decode_weights, encode_weights
from edgefl.compress.budget import MEASURED, Structure
from edgefl.compress.groups import Shares, shrunk
from edgefl.compress.sensitivity import FINE, LEVELS, Baseline, Sensitivity, searched, thinned
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.measuring import Right, right_of
from edgefl.export.models import ModelSource
from edgefl.layout import Float32
from edgefl.server.cuts import Cut, Pruner, frozen_cuts, full_cuts, nested_cuts, pruned_cuts

SAMPLE = 1000
MANY, FEW_LEVELS = 8, (0.5, 0.25)
"""With more groups than this each is measured at these levels only."""
SHORTLIST = 32
"""Searched structures that are measured."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What a change of the model costs, by held-out examples.

    Attributes:
        sample: the examples.
        whole: how right each answer of the whole model is.
        baseline: the whole model's accuracy on them.
    """

    sample: Examples
    whole: Right
    baseline: Baseline

    def lost(self, source: ModelSource, width: float, vector: Float32) -> float:
        """Accuracy that a model with these weights costs against the whole one, with its risk; 0 if it answers the same."""
        right = right_of(source, width, vector, self.sample)
        return self.baseline.cost(float(right.mean()), float(np.abs(right - self.whole).mean()))


@dataclass(frozen=True, slots=True)
class Offered:
    """The structures of a model and what is known of their accuracy.

    Attributes:
        cuts: by name, the full model first.
        drops: what each costs by name, in float32; empty if nothing was measured.
        losses: what each precision costs at the full model; precisions that cannot hold its weights are missing.
        baseline: of the full model; None if nothing was measured.
        basis: in words, what the choice rests on.
        judge: what measured; None if nothing was measured.
    """

    cuts: Mapping[str, Cut]
    drops: Mapping[str, float]
    losses: Mapping[Precision, float]
    baseline: Baseline | None
    basis: str
    judge: Judge | None = None

    def predicted(self, structure: Structure, precision: Precision) -> float | None:
        """Accuracy of a structure at a precision; None if it cannot be had."""
        if self.baseline is None or precision not in self.losses:
            return None
        return self.baseline.predicted([self.drops[structure.name], self.losses[precision]])


def offer(
    source: ModelSource, parent: Float32, holdout: Examples | None, say: Callable[[str], None], *, freezable: bool = False
) -> Offered:
    """The structures that a model is offered in.

    Args:
        source: the model.
        parent: its weights at full width.
        holdout: shaped for the model, or None.
        say: told what is being done, a line at a time.
        freezable: whether measured structures are also offered with their first layers frozen.

    Raises:
        ModelError: a narrower model is no part of the full one.
    """
    nested = nested_cuts(source)
    if holdout is None:
        return _unmeasured(source, parent, nested, "no held-out examples", say)
    if not source.recipe.classifies:
        return _unmeasured(source, parent, nested, f"the loss {source.recipe.loss} has no right answers", say)
    sample = holdout.take(np.linspace(0, len(holdout) - 1, min(SAMPLE, len(holdout))).astype(np.int64))
    whole = right_of(source, 1.0, parent, sample)
    judge = Judge(sample, whole, Baseline(float(whole.mean()), _chance(sample), len(sample)))
    baseline = judge.baseline
    if not baseline.tells:
        basis = f"the full model's accuracy on held-out examples, {100 * baseline.accuracy:.1f} %, is hardly better than chance"
        return _unmeasured(source, parent, nested, basis, say)
    say(f"measuring what pruning costs on {len(sample)} examples")
    pruner = Pruner(source, parent, sample)
    pruner.decide(lambda pruned: -judge.lost(pruned.source, 1.0, parent[pruned.index]))
    pruned = pruned_cuts(pruner, [*pruner.uniform(), *_searched(pruner, judge, parent, nested[0])], say)
    cuts = {cut.structure.name: cut for cut in (*nested, *pruned, *_pruned_depths(pruner, nested, say))}
    drops = {name: judge.lost(cut.source, cut.structure.width, cut.slice(parent)) for name, cut in cuts.items()}
    for name, cut in list(cuts.items()) if freezable else ():
        for frozen in frozen_cuts(cut):
            cuts[frozen.structure.name] = frozen
            drops[frozen.structure.name] = drops[name]
    basis = f"accuracy on {len(sample)} held-out examples"
    return Offered(cuts, drops, _losses(nested[0], judge, parent), baseline, basis, judge)


def _unmeasured(source: ModelSource, parent: Float32, nested: tuple[Cut, ...], basis: str, say: Callable[[str], None]) -> Offered:
    cuts = nested
    if not source.scalable:
        pruner = Pruner(source, parent, None)
        cuts = (*nested, *pruned_cuts(pruner, pruner.uniform(), say), *_pruned_depths(pruner, nested, say))
    return Offered({cut.structure.name: cut for cut in cuts}, {}, {}, None, basis)


def _pruned_depths(pruner: Pruner, nested: tuple[Cut, ...], say: Callable[[str], None]) -> Iterator[Cut]:
    """Cuts of every depth below the whole model, by equal shares."""
    for depth in full_cuts(nested)[1:]:
        shallow = pruner.at(depth)
        yield from pruned_cuts(shallow, shallow.uniform(), say)


def _searched(pruner: Pruner, judge: Judge, parent: Float32, full: Cut) -> list[Shares]:
    """Cuts that are worth measuring: small for what they lose, in parameters or in multiplications."""
    drops: dict[str, dict[float, float]] = {}
    looked = LEVELS if len(pruner.groups) <= MANY else FEW_LEVELS
    for group in pruner.groups:
        levels = {group.count(level): level for level in reversed(looked) if group.count(level) < group.channels}
        drops[group.name] = {}
        for level in levels.values():
            try:
                pruned = pruner.pruned({group.name: level})
            except ModelError:  # it could be halved, but not be cut to this share: the search is to keep away from it
                drops[group.name][level] = judge.baseline.accuracy
                continue
            drops[group.name][level] = judge.lost(pruned.source, 1.0, parent[pruned.index])
    if not drops:
        return []
    layout, work = full.structure.layout, full.structure.work
    sensitivity = Sensitivity(drops).refined(FINE, judge.baseline.accuracy)

    def parameters(shares: Shares) -> float:
        return shrunk(layout, pruner.groups, shares).size

    def multiplications(shares: Shares) -> float:
        return work.multiplications(shrunk(layout, pruner.groups, shares), 1)

    kinds = ((parameters, SHORTLIST), (multiplications, SHORTLIST // 2))
    return [cut for size, most in kinds for cut in thinned(searched(sensitivity, size), size, most)]


def _losses(full: Cut, judge: Judge, parent: Float32) -> Mapping[Precision, float]:
    layout = full.structure.layout
    losses: dict[Precision, float] = {}
    for precision in MEASURED:
        try:
            as_sent = decode_weights(encode_weights(parent, layout, precision), layout)
        except ModelError:
            continue  # too large for fp16
        losses[precision] = judge.lost(full.source, full.structure.width, as_sent)
    return losses


def _chance(sample: Examples) -> float:
    if sample.y.ndim == 1:
        return float(np.bincount(sample.y).max()) / len(sample)
    present = (sample.y > 0.5).mean(axis=0)
    return float(np.maximum(present, 1.0 - present).mean())
