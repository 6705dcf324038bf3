"""What a device's session knows about one model: the values that `device.session` maps to one another. Pure."""

from dataclasses import dataclass
from enum import Enum

from edgefl.wire.messages import Difference, Manifest, RoundOrder


class Step(Enum):
    """Where the work of a round stands."""

    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


@dataclass(frozen=True, slots=True)
class Work:
    """One round in progress.

    Attributes:
        version, round: which one.
        step: how far it is.
        order: what was ordered; unknown for an update that was found in the outbox after a restart.
        difference: by which the weights are being fetched; None for the whole file.
        sha256: of the encoded update, once there is one.
        failures: failed trainings while fetching or training, unanswered repetitions while sending.
        retry_at: when to try again, None while something is going on.
    """

    version: int
    round: int
    step: Step
    order: RoundOrder | None
    sha256: bytes = b""
    failures: int = 0
    retry_at: float | None = None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """State of one model on one device.

    Attributes:
        device: its id.
        active: manifest of the version in use.
        installing: manifest of the version being fetched.
        missing: SHA-256 of files of `installing` that are not there yet.
        work: the round in progress.
        heard: newest order for the active variant.
        done: version and round of the newest round that needs no more work.
        adopted: SHA-256 of the newest weights that the device holds.
        loss: of the last training of this version; 0 if it is not known.
    """

    device: str
    active: Manifest | None = None
    installing: Manifest | None = None
    missing: frozenset[bytes] = frozenset()
    work: Work | None = None
    heard: RoundOrder | None = None
    done: tuple[int, int] = (0, 0)
    adopted: bytes = b""
    loss: float = 0.0
