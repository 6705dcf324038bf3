"""What the server last heard of each device: its birth or death, and its last report.

Model: devices may say as much as they like; a `PresenceBook` keeps one entry per device in memory, and what it holds is written
down in one go a few times a second. A crash loses what was heard since: the broker gives states back (they are retained), and
the next report replaces the last one.

Rule: a birth always counts, also of a device that counts its sessions from 1 again on a new card. A death counts unless it is an
older session's: then its will came late.
"""

import sqlite3
from dataclasses import dataclass

from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report, State

UNKNOWN = State(0, online=True)
"""Stands for the birth of a device that has not been heard."""


@dataclass(frozen=True, slots=True)
class Presence:
    """A device as the server sees it; `seen` in seconds since 1970."""

    device: str
    online: bool
    seen: float
    state: State
    report: Report | None


class PresenceBook:
    """What was heard and is not yet written down. Owned by one thread."""

    def __init__(self) -> None:
        self._births: dict[str, tuple[State, float]] = {}
        self._deaths: dict[str, tuple[State, float]] = {}
        self._reports: dict[str, tuple[Report, float]] = {}

    def state(self, device: str, state: State, now: float) -> None:
        """A birth or death was heard."""
        if state.online:
            self._births[device] = (state, now)
            self._deaths.pop(device, None)
        elif all(state.session >= heard[device][0].session for heard in (self._births, self._deaths) if device in heard):
            self._deaths[device] = (state, now)

    def report(self, device: str, report: Report, now: float) -> None:
        """A report was heard."""
        self._reports[device] = (report, now)

    def write(self, database: sqlite3.Connection) -> None:
        """Write everything down, in the transaction that is open; `clear` once that has been committed."""
        for heard in (self._births, self._deaths):
            for device, (state, now) in heard.items():
                _write_state(database, device, state, now)
        for device, (report, now) in self._reports.items():
            _write_report(database, device, report, now)

    def clear(self) -> None:
        """Everything is written down."""
        for heard in (self._births, self._deaths, self._reports):
            heard.clear()

    def __bool__(self) -> bool:
        """Whether there is anything to write down."""
        return bool(self._births or self._deaths or self._reports)


def _write_state(database: sqlite3.Connection, device: str, state: State, now: float) -> None:
    database.execute(
        """INSERT INTO presence (device, online, session, seen, state) VALUES (?, ?, ?, ?, ?)
           ON CONFLICT (device) DO UPDATE SET online=excluded.online, session=excluded.session, seen=excluded.seen,
           state=CASE WHEN excluded.online THEN excluded.state ELSE state END
           WHERE excluded.online OR excluded.session >= session""",
        (device, state.online, state.session, now, encode(state if state.online else UNKNOWN)),
    )


def _write_report(database: sqlite3.Connection, device: str, report: Report, now: float) -> None:
    database.execute(
        """INSERT INTO presence (device, online, session, seen, state, report) VALUES (?, 1, 0, ?, ?, ?)
           ON CONFLICT (device) DO UPDATE SET seen=excluded.seen, report=excluded.report""",
        (device, now, encode(UNKNOWN), encode(report)),
    )


def presences(database: sqlite3.Connection) -> dict[str, Presence]:
    """Everything known, by device id."""
    return {
        row["device"]: Presence(
            row["device"],
            bool(row["online"]),
            row["seen"],
            decode(row["state"], State),
            decode(row["report"], Report) if row["report"] is not None else None,
        )
        for row in database.execute("SELECT * FROM presence ORDER BY device")
    }
