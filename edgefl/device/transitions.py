"""The moves of the session machine as two tables, and their drawing. Pure.

Model: `state_of_install` and `state_of_work` name where a session stands in each half of the machine; the tables list every move
that `edgefl.device.session.step` makes from one name to another, and the events that make it. Staying where one is stands in
neither.

Rule: the machine is written as functions, not as a table, because most of what it does depends on more than where it stands. The
tests hold both together: no order of events makes a move that is not listed, and every move that is listed is made by some order.
`docs/device-states.md` is drawn from these tables.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from edgefl.device.state import Session

NONE = "none"


@dataclass(frozen=True, slots=True)
class Move:
    """From one state to another: which events make it, and when, in a few words."""

    source: str
    target: str
    events: tuple[str, ...]
    when: str = ""


INSTALLING = (
    Move(NONE, "waiting", ("ManifestHeard",), "another version is assigned"),
    Move(NONE, "waiting", ("Damaged",), "a file of the active version"),
    Move("waiting", "fetching", ("Checked",), "leave to download"),
    Move("waiting", "ready", ("Fetched",), "the last file comes after all"),
    Move("waiting", NONE, ("ManifestHeard",), "the active version, or one that has failed"),
    Move("waiting", NONE, ("Fetched",), "repaired after all"),
    Move("waiting", NONE, ("Tick",), "repair takes too long: revert"),
    Move("fetching", "waiting", ("Checked",), "leave is withdrawn"),
    Move("fetching", "waiting", ("ManifestHeard",), "another version is assigned"),
    Move("fetching", "ready", ("Fetched",), "the last file"),
    Move("fetching", NONE, ("Fetched",), "the last file: repaired"),
    Move("fetching", NONE, ("ManifestHeard",), "the active version, or one that has failed"),
    Move("fetching", NONE, ("Tick",), "repair takes too long: revert"),
    Move("fetching", NONE, ("TrainingFailed",), "revert"),
    Move("waiting", NONE, ("TrainingFailed",), "revert"),
    Move("ready", "trial", ("Checked",), "leave to install"),
    Move("ready", NONE, ("Checked",), "too many starts: refused"),
    Move("ready", NONE, ("ManifestHeard",), "the active version, or one that has failed"),
    Move("ready", "waiting", ("ManifestHeard",), "another version is assigned"),
    Move("ready", NONE, ("TrainingFailed",), "revert"),
    Move("trial", NONE, ("Tried",), "activated or refused"),
    Move("trial", NONE, ("TrainingFailed",), "revert"),
    Move("trial", NONE, ("ManifestHeard",), "the active version, or one that has failed"),
    Move("trial", "waiting", ("ManifestHeard",), "another version is assigned"),
)
"""The way of a version to become the active one."""

WORKING = (
    Move(NONE, "fetching", ("OrderHeard",), "a newer round, and the lot is drawn"),
    Move(NONE, "fetching", ("Tried", "Fetched"), "the order was there before its version"),
    Move("fetching", "training", ("Fetched",), "the weights"),
    Move("fetching", NONE, ("Fetched",), "final weights: adopted"),
    Move("fetching", NONE, ("OrderHeard",), "a newer round without this device"),
    Move("fetching", NONE, ("Tried", "Tick"), "another version is active"),
    Move("training", "sending", ("Trained",), "the update is in the outbox"),
    Move("training", "fetching", ("TrainingFailed",), "again after a pause, or the newer round"),
    Move("training", NONE, ("TrainingFailed",), "given up"),
    Move("training", NONE, ("Checked",), "a trial begins"),
    Move("training", NONE, ("Tried",), "another version is active"),
    Move("training", "fetching", ("Tried",), "another version is active, and its order is there"),
    Move("sending", NONE, ("ReceiptHeard",), "stored or refused"),
    Move("sending", "fetching", ("ReceiptHeard",), "the newer round"),
    Move("sending", NONE, ("Tried", "Tick"), "another version is active"),
    Move("sending", "fetching", ("Tried",), "another version is active, and its order is there"),
)
"""The work of a round."""


def state_of_install(session: Session) -> str:
    """Where the installation stands: `none` or the name of its phase."""
    return session.install.phase.value if session.install else NONE


def state_of_work(session: Session) -> str:
    """Where the round stands: `none` or the name of its step."""
    return session.work.step.value if session.work else NONE


def drawing(moves: Iterable[Move]) -> str:
    """A table of moves as a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    lines = ["stateDiagram-v2", f"    [*] --> {NONE}"]
    for move in moves:
        label = " / ".join(move.events) + (f", {move.when}" if move.when else "")
        lines.append(f"    {move.source} --> {move.target}: {label.replace(':', ' -')}")
    return "\n".join(lines) + "\n"
