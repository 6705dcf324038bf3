"""Who takes part in a round, and how evenly the work came to be spread. Pure.

Model: nobody is invited. Every device draws a lot in [0, 1) from what it and the server both know (model, version, round, its own
name), and takes part if the lot is below its chance. The lots of a round are independent of one another and of other rounds, so
the fraction `p` of a fleet takes part on average, and every device in the fraction `p` of all rounds.

Loss-biased sampling: devices whose last training loss was above the fleet's mean get a proportionally larger chance, so that
rounds go where there is most to learn. The idea is power-of-choice's (Cho, Wang, Joshi 2020, https://arxiv.org/abs/2010.01243),
which asks candidates for their losses and invites the largest; here each device compares its own loss with the mean that comes
with the round order, and no loss has to be asked for. A mean of ratios to the mean is 1, so that the expected number of those who
take part stays the plan's fraction as long as no chance is cut off at 1.

Rules: the factor is bounded, so that no device is shut out and none takes part every time for its loss alone; a device that knows
no loss of its own, or was told no mean, draws with the plain fraction. Biased participation biases the mean towards those that
take part more: that is the purpose, and `fairness` says how far it went.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST, MOST = 0.25, 4.0
"""Bounds of the factor that a loss puts on a device's chance."""


def lot(model: str, version: int, number: int, device: str) -> float:
    """The device's lot in this round, in [0, 1): the first eight bytes of a SHA-256, as a fraction of 2**64."""
    return _draw(model, version, number, device) / 2.0**64


def _draw(model: str, version: int, number: int, device: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{model}/{version}/{number}/{device}".encode()).digest()[:8], "big")


def chance(fraction: float, *, own_loss: float = 0.0, mean_loss: float = 0.0) -> float:
    """How likely a device is to take part, in (0, 1].

    Args:
        fraction: of the plan, in (0, 1].
        own_loss: of this device's last training; 0, or what is no positive number, if it is not known.
        mean_loss: of the fleet's last round; likewise.
    """
    return min(1.0, fraction * _ratio(own_loss, mean_loss))


def _ratio(own: float, mean: float) -> float:
    """`own / mean` within the bounds; 1 if either is not known."""
    if not (math.isfinite(own) and math.isfinite(mean) and own > 0.0 and mean > 0.0):
        return 1.0
    return min(MOST, max(LEAST, own / mean))


def mean_loss(losses: Sequence[float]) -> float:
    """The mean of the losses that devices reported, finite and at least 0; 0 if there are none.

    Each counts as at most `MOST` times the (upper) median: one device that lies or diverges does not move the fleet's mean.
    """
    known = sorted(loss for loss in losses if math.isfinite(loss) and loss >= 0.0)
    if not known:
        return 0.0
    limit = MOST * known[len(known) // 2]
    return math.fsum(min(loss, limit) for loss in known) / len(known)


def takes_part(model: str, version: int, number: int, device: str, likely: float) -> bool:
    """Whether the device, whose `chance` is `likely`, takes part in this round."""
    return _draw(model, version, number, device) < likely * 2.0**64


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly the work was spread over the devices that could have taken part.

    Attributes:
        devices: how many could have.
        least, most: times that a device took part.
        jain: Jain's index `(sum x)^2 / (n sum x^2)` (Jain, Chiu, Hawe 1984, DEC-TR-301), in [1/n, 1]; 1 is perfectly even, and
            also when nobody took part.
        largest_share: of all updates that came from one device, in [0, 1].
    """

    devices: int
    least: int
    most: int
    jain: float
    largest_share: float


def fairness(counts: Sequence[int]) -> Fairness:
    """The figures of how often each device took part; those that never did count with 0."""
    total, squares = sum(counts), sum(count * count for count in counts)
    if not total:
        return Fairness(len(counts), 0, 0, 1.0, 0.0)
    return Fairness(len(counts), min(counts), max(counts), total * total / (len(counts) * squares), max(counts) / total)
