"""Rollouts in the running server and on the command line: what is heard and ordered goes through the machine into the database.

Model: the rows are the state; nobody keeps another copy. An *advance* reads a rollout, lets the machine conclude, and writes the
result, in one transaction. The server advances with what devices say, commands with what operators want, and neither can lose the
other's work. What a device is to hold then follows from the rows (`edgefl.server.wanted`): whoever tells devices reads it there,
so that nothing is said that is not written.

Rules:

* Reports are gathered and taken up together, a few times a second; a thousand devices are one advance.
* A report that was lost costs nothing: a birth whose inventory shows the version counts as well, and the broker keeps births.
* What a finished rollout brings becomes the release, unless it was meant for some devices only; then it is their version.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from edgefl.server.rollout import step
from edgefl.server.rollout_events import DevicesChanged, Effect, Event, Heard, Moved, Reported, Tick, Told
from edgefl.server.rollout_state import OPEN, Rollout, Step
from edgefl.store.database import changes_by_others, transaction
from edgefl.store.releases import release
from edgefl.store.rollouts import RolloutRecord, drop_kept, get_rollout, heeded, members, open_rollouts, write_rollout
from edgefl.wire.presence import Report, State

TICK_EVERY = 5.0
"""Seconds between two looks at who is there and who has taken too long."""
MEANING: Mapping[str, Step] = {
    "fetching": "fetching", "deferred": "deferred", "trial": "trial", "activated": "activated", "reverted": "reverted",
    "failed": "failed", "training": "activated", "trained": "activated", "adopted": "activated",
}  # fmt: skip
"""What the steps of a device's reports say of a rollout: only a device that holds the version can train it."""

log = logging.getLogger("edgefl.server")


def advance(
    database: sqlite3.Connection, record: RolloutRecord, events: Iterable[Event], now: float
) -> tuple[RolloutRecord, tuple[Effect, ...]]:
    """Let events happen to a rollout, then look at its devices; in the transaction that is open.

    Returns:
        The rollout as it is written, and what followed.

    Raises:
        FleetError: an order that is impossible now; the transaction must be rolled back.
    """
    meant = members(database, record)
    present = frozenset(name for name, member in meant.items() if member.present)
    holding = frozenset(name for name, member in meant.items() if member.holds)
    state, followed = replace(record.state, present=present, holding=holding), list[Effect]()
    for event in (*events, DevicesChanged(meant)):
        state, effects = step(state, event, now)
        followed += effects
    if record.is_open and state.phase not in OPEN:
        _end(database, record, state.phase, now)
    return write_rollout(database, record, state, now), tuple(followed)


def _end(database: sqlite3.Connection, record: RolloutRecord, phase: str, now: float) -> None:
    """Do what follows for others from the end of a rollout."""
    if phase == "finished" and not record.target:
        release(database, record.model, record.version, now)
    elif phase != "superseded" and open_rollouts(database, record.model) == [record.state.id]:
        drop_kept(database, record.model, ("superseded",))


class Rollouts:
    """What the server knows of running rollouts. Owned by its one thread.

    Args:
        database: the fleet's.
        wall: seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, wall: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._seen: int | None = None
        self._tick_at = 0.0
        self._versions: dict[tuple[str, int], list[int]] = {}
        self._heard: dict[tuple[int, str, str], Reported] = {}

    def report(self, device: str, report: Report) -> None:
        """A device has reported."""
        if report.step == "failed" and report.round:
            return  # of a training: the version itself is there
        trouble = report.step == "failed" and not report.version
        for (model, version), numbers in self._versions.items():
            if trouble and report.model in {model, "none"}:
                self._note(numbers, Reported(device, "told", code=report.code or "trouble", error=report.error))
            elif (report.model, report.version) == (model, version) and report.step in MEANING:
                how = (report.percent, report.fetched, report.code, report.error)
                self._note(numbers, Reported(device, MEANING[report.step], *how))

    def state(self, device: str, state: State) -> None:
        """A device has been born or has died."""
        for one in state.models if state.online else ():
            self._note(self._versions.get((one.model, one.version), []), Reported(device, "activated"))

    def _note(self, numbers: Iterable[int], said: Reported) -> None:
        """Keep a report until the next look: of each device and step the last one, so that a flood of reports takes no room.

        Every rollout of the version hears it; a rollout takes no notice of devices that are not its own.
        """
        for rollout in numbers:
            self._heard.pop((rollout, said.device, said.step), None)
            self._heard[rollout, said.device, said.step] = said

    def look(self) -> bool:
        """Take up what was heard, ordered and has become late.

        Returns:
            Whether what devices are to hold may be another now.

        Raises:
            StoreError: the database cannot be read or written now; what was heard is kept.
        """
        now, seen = self._wall(), changes_by_others(self._database)
        if not self._heard and seen == self._seen and now < self._tick_at:
            return False
        news = False
        concerned = {rollout for rollout, _, _ in self._heard}
        for rollout, (_, _, phase) in heeded(self._database).items():
            if phase in OPEN or rollout in concerned:
                with transaction(self._database):
                    news |= self._advance(rollout, now)
        self._versions = {}
        for number, (model, version, _) in heeded(self._database).items():
            self._versions.setdefault((model, version), []).append(number)
        self._heard.clear()
        self._seen, self._tick_at = seen, now + TICK_EVERY
        return news

    def _advance(self, rollout: int, now: float) -> bool:
        record = get_rollout(self._database, rollout)
        reports = tuple(said for (number, _, _), said in self._heard.items() if number == rollout)
        after, effects = advance(self._database, record, (Heard(reports), Tick()), now)
        for effect in effects:
            log.info("%s@%d: %s", record.model, record.version, told_in_words(effect))
        return bool(effects) or _heeds(record.state) != _heeds(after.state)


def _heeds(state: Rollout) -> dict[str, tuple[bool, bool, bool]]:
    """What matters for what a device is to hold: whether it is told, has failed, holds the version."""
    return {name: (one.step != "waiting", one.failed, one.step == "activated") for name, one in state.devices.items()}


def told_in_words(effect: Effect) -> str:
    """An effect as one line."""
    match effect:
        case Told(stage, devices):
            return (
                f"stage {stage + 1}: told {len(devices)} devices ({', '.join(devices[:5])}{', ...' if len(devices) > 5 else ''})"
            )
        case Moved(before, cause, after, reason):
            return f"the rollout is {after}: {reason}" if before != after else f"{cause}: the next stage opens"
