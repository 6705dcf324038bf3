"""What a board's doctor has to say, as values.

Model: a check is `ok`, `warning` (the device can take part, but somebody should look) or `failed` (it cannot).

Rule: `failed` is exact. A device without a failed check can train the next round (one that does not train: can answer), one with
a failed check cannot.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

State = Literal["ok", "warning", "failed"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement. `remedy` is empty when there is nothing to do."""

    name: str
    state: State
    text: str
    remedy: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a stored variant needs on this machine, in a process of its own.

    Attributes:
        model, version, variant, engine: which one.
        step_ms: of the fastest training step; 0 of a variant that is only served.
        peak_rss_mb: MiB of the process at its largest.
        slowdown: how many times longer a step takes here than where the variant was pushed, as a profile says it
            (`edgefl.profile`); 0 if the push has not measured one.
    """

    model: str
    version: int
    variant: str
    engine: str
    step_ms: float
    peak_rss_mb: float
    slowdown: float = 0.0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the doctor says.

    Attributes:
        device, profile: whose board it is; empty when the bundle cannot be read.
        able: whether it can take part, or answer where it does not train: no check has failed.
        versions: of what runs here, by name.
        models: what each stored variant needs.
        checks: in the order in which they were made.
        trains: whether it is to take part in rounds; otherwise it only answers.
    """

    device: str
    profile: str
    able: bool
    versions: dict[str, str]
    models: tuple[Measured, ...]
    checks: tuple[Check, ...]
    trains: bool = True


def is_able(checks: Sequence[Check]) -> bool:
    """Whether a device with these checks can take part."""
    return all(check.state != "failed" for check in checks)
