"""How evenly work and success are spread over the devices, and what the server thinks of them."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edgefl.participation import fairness

WORST_SHARE = 0.1

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Participation(msgspec.Struct, frozen=True, kw_only=True):
    """How often devices took part.

    Attributes:
        least, mean, most: updates of one device that counted.
        gini: Gini coefficient in [0, 1); 0 is perfectly even.
        jain: Jain's index in [1/n, 1]; 1 is perfectly even.
    """

    least: int
    mean: float
    most: int
    gini: float
    jain: float


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """How good the final weights are on each honest device's own examples.

    Attributes:
        mean, deviation: of the accuracy over the devices, each counting the same.
        worst_tenth: mean accuracy of the tenth of the devices (at least one) where it is lowest.
        least: the lowest.
    """

    mean: float
    deviation: float
    worst_tenth: float
    least: float


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How well the aggregator told hostile devices from honest ones.

    Attributes:
        honest, hostile: mean standing in [0, 1] of the honest and of the hostile devices; None without any.
        excluded_honest, excluded_hostile: how many of them were excluded.
    """

    honest: float | None
    hostile: float | None
    excluded_honest: int
    excluded_hostile: int


def standing(standings: Floats, excluded: Flags, hostile: Flags) -> Standing:
    """The figures of the devices' standings; all arrays have the shape `(devices,)`."""
    honest = ~hostile
    return Standing(
        honest=float(standings[honest].mean()) if honest.any() else None,
        hostile=float(standings[hostile].mean()) if hostile.any() else None,
        excluded_honest=int((excluded & honest).sum()),
        excluded_hostile=int((excluded & hostile).sum()),
    )


def participation(counts: Sequence[int]) -> Participation:
    """The figures of how often each device took part, shape `(devices,)`."""
    found = fairness(counts)
    return Participation(
        least=found.least, mean=sum(counts) / max(1, len(counts)), most=found.most, gini=gini(counts), jain=found.jain
    )


def gini(counts: Sequence[int]) -> float:
    """Gini's coefficient `sum_i (2i - n - 1) x_i / (n sum x)` of the counts in ascending order, i from 1; 0 if all are 0."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    total, n = ordered.sum(), len(ordered)
    if not total:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total))


def success(accuracies: Sequence[float]) -> Success:
    """The figures of the devices' accuracies, at least one."""
    ordered = np.sort(np.asarray(accuracies, dtype=np.float64))
    worst = ordered[: max(1, round(WORST_SHARE * len(ordered)))]
    return Success(
        mean=float(ordered.mean()), deviation=float(ordered.std()), worst_tenth=float(worst.mean()), least=float(ordered[0])
    )
