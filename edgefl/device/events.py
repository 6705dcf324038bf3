"""What can happen to a device's session, and what it can ask of the shell: the alphabet of `device.session`.

Events are facts in the past tense, effects are orders in the imperative. Both are values; nothing here does anything.
"""

from dataclasses import dataclass

from edgefl.wire.messages import Difference, FileRef, Manifest, Receipt, RoundOrder


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection."""


@dataclass(frozen=True, slots=True)
class ManifestHeard:
    """A manifest whose signature, profile and expiry have been checked."""

    manifest: Manifest


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
    """The trainer could not make an update."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptHeard:
    """The server has stored or refused an update."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Connected | ManifestHeard | OrderHeard | Fetched | NotRebuilt | Trained | TrainingFailed | ReceiptHeard | Tick


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
class Activate:
    """Make this the active version on disk, atomically; update, residual and order of another version are dropped."""

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
    """Tell the server: `fetching`, `activated`, `training`, `trained`, `adopted`, `failed`."""

    step: str
    version: int
    round: int
    error: str = ""


Effect = Fetch | Rebuild | Activate | Adopt | Train | StopTraining | Send | Settle | Announce
