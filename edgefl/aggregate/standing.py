"""How a device stands after many rounds: one number from its scores, and when it is excluded.

Model: the standing is an exponential mean of a device's scores, from 1 (trusted, the beginning) to 0. One bad round costs little,
a habit shows after a few: with scores of 0 the standing falls below a half in the second round. A device whose standing is at
most the plan's `exclude` is excluded; nothing but an operator's word brings it back, and then it begins anew.

Rule: scores exclude no more devices than the plan takes to be hostile. Whoever could make honest devices look bad could otherwise
be left alone with the model.
"""

import math
from collections.abc import Collection, Mapping

MEMORY = 0.7
"""Weight of what was known before a round."""
TRUSTED = 1.0


def after_round(standings: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, float]:
    """The standings of the devices that were scored in a round.

    Args:
        standings: before it; a device that is missing is trusted.
        scores: in [0, 1].
    """
    return {device: MEMORY * standings.get(device, TRUSTED) + (1.0 - MEMORY) * score for device, score in scores.items()}


def fallen(
    standings: Mapping[str, float], before: Collection[str], threshold: float, *, attackers: float, devices: int
) -> list[str]:
    """Which devices are excluded now by their standings, the worst first.

    Args:
        standings: after the round, of the devices that were scored in it.
        before: whom scores have excluded before.
        threshold: the plan's `exclude`; 0 excludes nobody.
        attackers: the fraction of all devices that the plan takes to be hostile.
        devices: how many there are.
    """
    bad = sorted((standing, device) for device, standing in standings.items() if device not in before and standing <= threshold)
    room = max(0, math.ceil(attackers * devices) - len(before))
    return [device for _, device in bad[:room]] if threshold > 0.0 else []
