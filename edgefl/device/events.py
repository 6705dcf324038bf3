"""What can happen to a device's session, and what it can ask of the shell: the alphabet of `device.session`.

Events are facts in the past tense, effects are orders in the imperative. Both are values; nothing here does anything.
"""

from dataclasses import dataclass

from edgefl.device.state import Failure
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import Receipt, RoundOrder


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection."""


@dataclass(frozen=True, slots=True)
class ManifestHeard:
    """The believed manifest of the version that the device is to hold; `rollout` is the number under which it was assigned."""

    manifest: Manifest
    rollout: int = 0


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file of the active version was found damaged, and deleted."""


@dataclass(frozen=True, slots=True)
class OrderHeard:
    """A round order whose signature and expiry have been checked."""

    order: RoundOrder


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file is complete, verified and in the store."""

    sha256: bytes


@dataclass(frozen=True, slots=True)
class NotRebuilt:
    """The weights with this SHA-256 could not be made from a difference."""

    sha256: bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """The update of a round is in the outbox, on disk; `loss` is the training's, 0 if it is not known."""

    round: int
    sha256: bytes
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The trainer could not make an update; `code` is the error's, or `load`, `crash`, `memory` or `time`."""

    round: int
    reason: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to `Check`: why a download and an installation have to wait, as in `edgefl.device.defer`; empty for go on."""

    download: str = ""
    install: str = ""


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial has ended: passed, or failed with a code such as `trial-golden`."""

    version: int
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptHeard:
    """The server has stored or refused an update."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Connected
    | ManifestHeard
    | Damaged
    | OrderHeard
    | Fetched
    | NotRebuilt
    | Trained
    | TrainingFailed
    | ReceiptHeard
    | Checked
    | Tried
    | Tick
)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get these files (all that this model needs now) and report each with `Fetched`, soon for one that is there and intact."""

    files: tuple[FileRef, ...]


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make these weights from a difference, which is there, and its base; report `Fetched` of the weights, or `NotRebuilt`."""

    difference: Difference
    weights: FileRef


@dataclass(frozen=True, slots=True)
class Check:
    """Look whether a download and an installation may go on now, and report `Checked`."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Keep this version on disk as the candidate, and that its trial is begun for the given time: `starts` counts from 1."""

    manifest: Manifest
    rollout: int
    starts: int


@dataclass(frozen=True, slots=True)
class Try:
    """Try the candidate in the trainer and report `Tried`.

    `against` is the version whose newest weights it must not fall behind on the device's own data; None leaves that out.
    """

    manifest: Manifest
    against: Manifest | None


@dataclass(frozen=True, slots=True)
class StopTrial:
    """The trial in progress is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Make the candidate the active version on disk, atomically, and the active one the previous.

    Update and residual of the version that was active are dropped. `back`: it is the previous version, whose newest weights are
    still held.
    """

    manifest: Manifest
    back: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """There is no candidate any more."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Keep on disk that this version has failed here; there is no candidate any more."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Revert:
    """Make the previous version the active one again, atomically; keep on disk that the active one has failed, if it has."""

    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Repaired:
    """The files of the active version are whole again."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Adopt:
    """The order's weights are the ones to predict with from now on; keep the order on disk."""

    order: RoundOrder


@dataclass(frozen=True, slots=True)
class Train:
    """Train this round and report `Trained` or `TrainingFailed`."""

    manifest: Manifest
    order: RoundOrder


@dataclass(frozen=True, slots=True)
class StopTraining:
    """The training in progress is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send what is in the outbox, unless it is still on its way."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The outbox is done with: `stored` keeps its residual; otherwise it is as if the round had not been trained."""

    stored: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the server: `step` and `code` as in a wire `Report`."""

    step: str
    version: int
    round: int
    error: str = ""
    code: str = ""


Effect = (
    Fetch
    | Rebuild
    | Check
    | Prepare
    | Try
    | StopTrial
    | Activate
    | Abandon
    | Refuse
    | Revert
    | Repaired
    | Adopt
    | Train
    | StopTraining
    | Send
    | Settle
    | Announce
)
