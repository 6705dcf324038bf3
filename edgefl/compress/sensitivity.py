"""How much accuracy what was cut off costs, predicted from measurements; and which cuts are worth a closer look. Pure.

Model. Each change is measured alone, on examples that were held out, with the weights as pushed: a group of channels cut to a
share (Li et al., ICLR 2017, https://arxiv.org/abs/1608.08710; Han et al., NIPS 2015, https://arxiv.org/abs/1506.02626), or
weights of a precision. The accuracy of several changes together is predicted as that of the whole model less the sum of what
they cost. A drop up to one standard error of the measurement is noise and counts as none. What a change costs is its drop and its
risk: one standard error of the paired difference, which grows with the share of examples that are answered differently, right
instead of wrong or wrong instead of right (McNemar 1947). Two changes may lose as little on a thousand examples, and the one that
turned two hundred answers round has been lucky, the one that turned ten has not.

Between two measured shares a drop is interpolated; below the least one it is taken to grow to the whole accuracy.

The search. Every group has a few levels. All combinations are looked at where they are few; otherwise a chain of them: from the
whole model on, the step that loses the least accuracy for what it saves. Nothing here knows a budget, so that a larger one
chooses among the same and never does worse.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgefl.compress.groups import Shares

LEVELS = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Shares of its channels at which a group is measured."""
FINE = tuple(sixteenths / 16 for sixteenths in range(15, 0, -1))
"""Shares that the search looks at."""
EXHAUSTIVE = 4096
"""Combinations up to which all are looked at."""
KNOWS = 0.25
"""Part of the way from chance to perfection from which an accuracy says something: by luck of its first weights a network that
has learnt nothing can be well above chance, on any number of examples."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The whole model on the held-out examples.

    Attributes:
        accuracy: in [0, 1].
        chance: share of the most frequent answer.
        count: of examples.
    """

    accuracy: float
    chance: float
    count: int

    @property
    def noise(self) -> float:
        """One standard error of the accuracy, taken as at least that of half an example."""
        return max(math.sqrt(self.accuracy * (1.0 - self.accuracy) / self.count), 0.5 / self.count)

    @property
    def tells(self) -> bool:
        """Whether the model has learnt something; a drop of nothing means nothing."""
        return self.chance < 1.0 and self.accuracy >= self.chance + KNOWS * (1.0 - self.chance) + self.noise

    def drop(self, accuracy: float) -> float:
        """What a change that leads to this accuracy costs; 0 within the noise."""
        lost = self.accuracy - accuracy
        return lost if lost > self.noise else 0.0

    def cost(self, accuracy: float, turned: float) -> float:
        """What a change costs that leads to this accuracy and turns the answers to this share of the examples, in [0, 1]."""
        return self.drop(accuracy) + math.sqrt(turned / self.count)

    def predicted(self, drops: Sequence[float]) -> float:
        """Accuracy after several changes, in [0, 1]."""
        return max(0.0, self.accuracy - sum(drops))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What cutting each group alone costs.

    Attributes:
        drops: by group, then by level; level 1 costs nothing and need not be there.
    """

    drops: Mapping[str, Mapping[float, float]]

    def refined(self, shares: Sequence[float], most: float) -> "Sensitivity":
        """At these shares, interpolated; a share of nothing costs `most`."""
        fine = {}
        for name, measured in self.drops.items():
            known = sorted({0.0: most, **measured, 1.0: 0.0}.items())
            places, values = [place for place, _ in known], [value for _, value in known]
            fine[name] = {share: _interpolated(share, places, values) for share in shares}
        return Sensitivity(fine)

    def drop(self, shares: Shares) -> float:
        """Of several cuts together."""
        return sum(self.drops[name].get(share, 0.0) if share < 1.0 else 0.0 for name, share in shares.items())


def _interpolated(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    at = max(1, bisect.bisect_left(places, place))
    low, high = places[at - 1], places[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (place - low) / (high - low)


def searched(sensitivity: Sensitivity, size: Callable[[Shares], float]) -> tuple[dict[str, float], ...]:
    """Cuts that no other one beats: for each, what is as small loses more, by prediction. The largest first.

    Args:
        sensitivity: with at least one level below 1 for each group.
        size: of a cut, in any unit; it must not rise when a group keeps less.
    """
    names = sorted(sensitivity.drops)
    levels = [tuple(sorted({1.0, *sensitivity.drops[name]}, reverse=True)) for name in names]
    if math.prod(map(len, levels)) <= EXHAUSTIVE:
        cuts = [dict(zip(names, shares, strict=True)) for shares in itertools.product(*levels)]
    else:
        cuts = _chain(sensitivity, dict(zip(names, levels, strict=True)), size)
    priced = sorted(((sensitivity.drop(cut), size(cut), cut) for cut in cuts), key=lambda found: found[:2])
    best: list[dict[str, float]] = []
    least = math.inf
    for _, taken, cut in priced:
        if taken < least:
            best.append(cut)
            least = taken
    return tuple(best)


def _chain(
    sensitivity: Sensitivity, levels: Mapping[str, tuple[float, ...]], size: Callable[[Shares], float]
) -> list[dict[str, float]]:
    """The whole model, and after it one group cut to its next level at each step."""
    chain = [dict.fromkeys(levels, 1.0)]
    while True:
        here = chain[-1]
        nexts = [
            {**here, name: ladder[ladder.index(here[name]) + 1]} for name, ladder in levels.items() if here[name] > ladder[-1]
        ]
        if not nexts:
            return chain
        lost, now = sensitivity.drop(here), size(here)

        def price(cut: Shares, lost: float = lost, now: float = now) -> tuple[float, float]:
            saved = now - size(cut)
            more = max(sensitivity.drop(cut) - lost, 0.0)
            return (more / saved if saved > 0 else math.inf, -saved)

        chain.append(min(nexts, key=price))


def thinned(cuts: Sequence[dict[str, float]], size: Callable[[Shares], float], most: int) -> tuple[dict[str, float], ...]:
    """At most so many of them, two or more, the first and the last among them, each smaller than the one before by one factor."""
    if len(cuts) <= most:
        return tuple(cuts)
    logs = [math.log(max(size(cut), 1e-9)) for cut in cuts]
    wanted = [logs[0] + (logs[-1] - logs[0]) * i / (most - 1) for i in range(most)]
    places = {min(range(len(cuts)), key=lambda place: abs(logs[place] - want)) for want in wanted}
    return tuple(cuts[place] for place in sorted(places))
