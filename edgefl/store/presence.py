"""What the server last heard of each device: its birth or death, and its last report."""

import sqlite3
from dataclasses import dataclass

from edgefl.wire.messages import Report, State, decode, encode


@dataclass(frozen=True, slots=True)
class Presence:
    """A device as the server sees it; `seen` in seconds since 1970."""

    device: str
    online: bool
    seen: float
    state: State
    report: Report | None


def heard_state(database: sqlite3.Connection, device: str, state: State, now: float) -> None:
    """Keep a birth or death. A death of an older session than the living one is ignored: its will came late."""
    with database:
        database.execute(
            """INSERT INTO presence (device, online, session, seen, state) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT (device) DO UPDATE SET online=excluded.online, session=excluded.session, seen=excluded.seen,
               state=CASE WHEN excluded.online THEN excluded.state ELSE state END
               WHERE excluded.session >= session""",
            (device, state.online, state.session, now, encode(state)),
        )


def heard_report(database: sqlite3.Connection, device: str, report: Report, now: float) -> None:
    """Keep a device's last report."""
    with database:
        database.execute(
            """INSERT INTO presence (device, online, session, seen, state, report) VALUES (?, 1, 0, ?, ?, ?)
               ON CONFLICT (device) DO UPDATE SET seen=excluded.seen, report=excluded.report""",
            (device, now, encode(State(0, online=True)), encode(report)),
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
