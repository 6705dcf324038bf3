"""What a device's session knows about one model: the values that `device.session` maps to one another. Pure."""

from dataclasses import dataclass
from enum import Enum

import msgspec

from edgefl.wire.files import Difference, FileRef
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import RoundOrder


class Step(Enum):
    """Where the work of a round stands."""

    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


class Phase(Enum):
    """Where an installation stands.

    WAITING: for the leave to download. FETCHING: its files. READY: all files are there, it waits for the leave to be tried.
    TRIAL: the trainer tries it, beside the active version.
    """

    WAITING = "waiting"
    FETCHING = "fetching"
    READY = "ready"
    TRIAL = "trial"


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


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A version that has failed on this device: it is not tried again under this rollout number. `code` says why."""

    version: int
    rollout: int
    code: str


@dataclass(frozen=True, slots=True)
class Install:
    """A version on its way to become the active one.

    Attributes:
        manifest: of it.
        rollout: number under which it was assigned.
        phase: how far it is.
        missing: SHA-256 of its files that are not known to be there.
        since: when it began, or when its last file came.
        starts: trials of it that were begun, those before a restart included.
        check_at: when to ask for leave again; None during the trial, and while the answer is awaited.
        told: reason for which it was last reported as deferred.
        repair: whether it is the active version itself, of which a file was damaged: it needs neither leave nor trial.
    """

    manifest: Manifest
    rollout: int
    phase: Phase
    missing: frozenset[bytes]
    since: float
    starts: int = 0
    check_at: float | None = None
    told: str = ""
    repair: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """State of one model on one device.

    Attributes:
        device: its id.
        active: manifest of the version in use.
        install: the version on its way.
        work: the round in progress.
        heard: newest order for the active variant.
        done: version and round of the newest round that needs no more work.
        adopted: SHA-256 of the newest weights that the device holds.
        loss: of the last training of this version; 0 if it is not known.
        previous: manifest of the version before the active one, whose files are kept.
        previous_weights: SHA-256 of the newest weights of that version; empty if it has only its own.
        broken: the version that is active on disk, while its files are damaged and `active` is None.
        rollout: number under which the active version was assigned.
        proven: whether the active version has made an update on this device.
        failed: versions that have failed here, newest last.
        told: the failure that was last reported because its version was assigned again.
    """

    device: str
    active: Manifest | None = None
    install: Install | None = None
    work: Work | None = None
    heard: RoundOrder | None = None
    done: tuple[int, int] = (0, 0)
    adopted: bytes = b""
    loss: float = 0.0
    previous: Manifest | None = None
    previous_weights: bytes = b""
    broken: Manifest | None = None
    rollout: int = 0
    proven: bool = False
    failed: tuple[Failure, ...] = ()
    told: Failure | None = None

    @property
    def installing(self) -> Manifest | None:
        """Manifest of the version on its way."""
        return self.install.manifest if self.install else None

    @property
    def trying(self) -> int:
        """Number of the version that is being tried; 0 for none."""
        return self.install.manifest.version if self.install and self.install.phase is Phase.TRIAL else 0

    @property
    def busy(self) -> bool:
        """Whether a round is being trained, or its update waits for the receipt."""
        return self.work is not None and self.work.step is not Step.FETCHING

    def wanted(self) -> tuple[FileRef, ...]:
        """The files that are to be fetched now, each once."""
        files: dict[bytes, FileRef] = {}
        if self.install and self.install.phase is Phase.FETCHING:
            files |= {ref.sha256: ref for ref in self.install.manifest.files if ref.sha256 in self.install.missing}
        if self.work and self.work.step is Step.FETCHING and self.work.order:
            ref = self.work.difference.file if self.work.difference else self.work.order.weights
            files[ref.sha256] = ref
        return tuple(files.values())


def same(one: Manifest | None, other: Manifest | None) -> bool:
    """Whether both are the same version and variant; one that was signed again may have another expiry."""
    return one is not None and other is not None and (one.version, one.variant) == (other.version, other.variant)
