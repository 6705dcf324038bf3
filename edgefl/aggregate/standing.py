"""How a device stands after many rounds: one number from its scores, and when it is excluded.

Model: the standing is an exponential mean of a device's scores, from 1 (trusted, the beginning) to 0. One bad round costs little,
a habit shows after a few: with scores of 0 the standing falls below a half in the second round. A device whose standing is at
most the plan's `exclude` is excluded; nothing but an operator's word brings it back, and then it begins anew.
"""

from collections.abc import Mapping

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


def is_excluded(standing: float, threshold: float) -> bool:
    """Whether a device with this standing is excluded; a threshold of 0 excludes nobody."""
    return threshold > 0.0 and standing <= threshold
