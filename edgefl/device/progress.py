"""Whether the agent gets on, or only seems to: what the watchdog is fed by. Pure.

Model: after each turn of the loop the agent says what it sees (`Seen`); `look` compares that with what it remembers (`Progress`)
and gives the reason why this is no progress any more, empty while it is. The turn itself is a sign of life that needs no look: an
agent that hangs in a system call, in a write to a dying card for example, does not come here.

Rules:

* A link that is down must be tried again: the pause between two attempts has a limit, so silence beyond it is a fault of ours.
* A trainer that is at work must use processor time. The agent ends one that stands still by itself (`device.training`); the limit
  here is longer and hits only if that has failed.
* What the network, the server or the board's owner do is not judged: no broker, no data and no work are no reason to restart.
"""

from dataclasses import dataclass

LINK_SECONDS = 300.0
"""Longest time between two attempts to connect: five times the longest pause of the link."""
TRAINER_SECONDS = 900.0
"""Longest time that a trainer at work may use no processor time: three times the agent's own patience with it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent sees after a turn.

    Attributes:
        connected: whether the link is up.
        attempts: to connect, since the start.
        training: whether the trainer has a job.
        cpu: processor seconds of the trainer's process.
        models: how many the device holds.
    """

    connected: bool
    attempts: int
    training: bool
    cpu: float
    models: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The last signs of progress: what was seen, and when (monotonic seconds)."""

    attempts: int
    tried_at: float
    cpu: float
    worked_at: float


def begin(now: float) -> Progress:
    """Before the first turn."""
    return Progress(attempts=0, tried_at=now, cpu=0.0, worked_at=now)


def look(progress: Progress, seen: Seen, now: float) -> tuple[Progress, str]:
    """What is remembered after a turn, and why that is no progress; empty if it is."""
    tried = seen.connected or seen.attempts != progress.attempts
    worked = not seen.training or seen.cpu != progress.cpu
    after = Progress(
        attempts=seen.attempts,
        tried_at=now if tried else progress.tried_at,
        cpu=seen.cpu,
        worked_at=now if worked else progress.worked_at,
    )
    if now - after.tried_at > LINK_SECONDS:
        return after, f"no connection, and no attempt at one for {now - after.tried_at:.0f} seconds"
    if now - after.worked_at > TRAINER_SECONDS:
        return after, f"the trainer has stood still for {now - after.worked_at:.0f} seconds and cannot be ended"
    return after, ""


def status(seen: Seen) -> str:
    """The same for a person, as short as it goes."""
    words = ["connected" if seen.connected else "no connection", f"{seen.models} model{'' if seen.models == 1 else 's'}"]
    return ", ".join([*words, "training"] if seen.training else words)
