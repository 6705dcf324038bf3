"""Whether a download and an installation may begin now, or have to wait: hours, battery, a round in progress, disk.

Model: `Policy` is what the owner of the board has said in `device.toml`, `Conditions` is how things are now. Each answer is empty
(go on) or one of `REASONS`. Download and installation are asked for apart: a board may fetch at night over a metered
link and install when nobody needs it.

Rules:

* Pure: whoever asks has looked at clock, battery and disk.
* What needs no download is not kept waiting for one: all files of the version that was active before are still there.
* The battery counts only while it is discharging.
* A round in progress holds an installation up for so many hours and no longer.
* A download begins only when the disk has room for what is missing, for the files that training the version will need, and for a
  reserve. These are known from the manifest; a factor for the unknown would keep small disks from what fits them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HOURS, BATTERY, TRAINING, DISK = "hours", "battery", "training", "disk"
REASONS: Mapping[str, str] = {
    HOURS: "not at this time of day",
    BATTERY: "the battery is too low",
    TRAINING: "a round is in progress",
    DISK: "there is not enough disk space",
}
DAY = 24 * 60

Hours = tuple[int, int]
"""From and to, in minutes of the local day, the second excluded; the first may be the later one: over midnight."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the board's owner allows.

    Attributes:
        download, install: hours in which each may begin; None for always. Downloads pause outside of theirs.
        battery: percent below which neither may; 0 for no floor.
        while_training: whether a version may be installed in the middle of a round.
        patience: seconds that a round in progress holds an installation up at most.
    """

    download: Hours | None = None
    install: Hours | None = None
    battery: int = 0
    while_training: bool = False
    patience: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How things are.

    Attributes:
        minute: of the local day, 0 to 1439.
        battery: percent; None without a battery, or while it is not discharging.
        training: whether a round of this model is being trained or sent.
        waited: seconds since all files are there.
        missing: bytes that are to be fetched; 0 if all files are there.
        working: bytes that training the version will take beside its files.
        free: bytes of disk, what is to be left free for others already taken off.
    """

    minute: int = 0
    battery: int | None = None
    training: bool = False
    waited: float = 0.0
    missing: int = 0
    working: int = 0
    free: int = 0


def may_download(policy: Policy, now: Conditions) -> str:
    """Why a download has to wait; empty if it may go on."""
    if not now.missing:
        return ""
    if not within(policy.download, now.minute):
        return HOURS
    if _weak(policy, now):
        return BATTERY
    return DISK if now.free < now.missing + now.working else ""


def may_install(policy: Policy, now: Conditions) -> str:
    """Why an installation has to wait; empty if it may go on."""
    if not within(policy.install, now.minute):
        return HOURS
    if _weak(policy, now):
        return BATTERY
    return TRAINING if now.training and not policy.while_training and now.waited < policy.patience else ""


def within(hours: Hours | None, minute: int) -> bool:
    """Whether a minute of the day lies in these hours; equal ends mean the whole day."""
    if hours is None:
        return True
    begin, end = hours
    return (minute - begin) % DAY < ((end - begin) % DAY or DAY)


def parse_hours(text: str) -> Hours | None:
    """Hours written as `22:00-06:00`, of which the pattern has been checked; None for an empty text."""
    if not text:
        return None
    begin, end = ((int(one[:2]) * 60 + int(one[3:])) for one in text.split("-"))
    return begin, end


def _weak(policy: Policy, now: Conditions) -> bool:
    return now.battery is not None and now.battery < policy.battery
