"""What hostile devices do, to measure what an aggregator stands. They keep to the update format: what is wrong is what it says.

* `sign-flip`: the update points the other way, times `strength`.
* `gaussian`: noise instead of the update, `strength` times as long as an honest one would be.
* `label-flip`: honest training on false labels, `classes - 1 - label` (Tolpegin et al., ESORICS 2020,
  https://arxiv.org/abs/2007.08432).
* `alie`: A Little Is Enough (Baruch, Baruch, Goldberg, NeurIPS 2019, https://arxiv.org/abs/1902.06156): the attackers of a round
  train honestly, take mean and standard deviation of their own updates for those of all, and all send `mean - z * deviation`,
  with z as large as hides them among the honest.

Rules: pure; the attack comes before the codec, so that an attacker's error feedback works for the attacker.
"""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edgefl.examples import Targets
from edgefl.layout import Float32
from edgefl.simulate.experiment import Attack


def poisoned(labels: Targets, classes: int, attack: Attack | None) -> Targets:
    """The labels that a device trains on; false ones with `label-flip`. Targets that are no labels stay."""
    if attack is None or attack.kind != "label-flip" or labels.ndim != 1:
        return labels
    return classes - 1 - labels


def twisted(delta: Float32, attack: Attack | None, rng: np.random.Generator) -> Float32:
    """The update of a single attacker, float32, in place of its honest one."""
    if attack is None:
        return delta
    match attack.kind:
        case "sign-flip":
            return delta * np.float32(-attack.strength)
        case "gaussian":
            noise = rng.standard_normal(len(delta), dtype=np.float32)
            length = float(np.linalg.norm(noise.astype(np.float64))) or 1.0
            honest = float(np.linalg.norm(delta.astype(np.float64)))
            return noise * np.float32(attack.strength * honest / length)
    return delta


class Conspiracy:
    """Mean and deviation of the attackers' honest updates, one update at a time.

    Args:
        size: coordinates of an update.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._sum: npt.NDArray[np.float64] = np.zeros(size)
        self._squares: npt.NDArray[np.float64] = np.zeros(size)

    def add(self, delta: Float32) -> None:
        """One attacker has trained."""
        self._count += 1
        self._sum += delta
        self._squares += np.square(delta, dtype=np.float64)

    def update(self, crowd: int, strength: float) -> Float32:
        """What all attackers send.

        Args:
            crowd: how many devices take part in the round, attackers included.
            strength: z; 0 computes it.
        """
        mean = self._sum / max(1, self._count)
        deviation = np.sqrt(np.maximum(self._squares / max(1, self._count) - np.square(mean), 0.0))
        return (mean - (strength or hidden(crowd, self._count)) * deviation).astype(np.float32)


def hidden(crowd: int, attackers: int) -> float:
    """The largest z at which attackers still find enough honest devices farther out (section 3.1 of the paper), at least 0."""
    honest = crowd - attackers
    supporters = crowd // 2 + 1 - attackers
    if honest < 1 or not 0 < supporters < honest:
        return 0.0 if supporters >= honest else 3.0  # the attackers are a majority by themselves: far out
    return max(0.0, NormalDist().inv_cdf((honest - supporters) / honest))
