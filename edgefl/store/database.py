"""The fleet's SQLite database: one file, one schema, one way to open it.

Rules: every writer uses short transactions (`with database:`); WAL lets the command line read and write while the server runs;
`synchronous=FULL` makes a committed transaction survive a power cut. A column is only ever added, with a default, together
with a step in `MIGRATIONS`.
"""

import sqlite3
from pathlib import Path

from edgefl.errors import StoreError

MIGRATIONS = (
    """
    CREATE TABLE devices (
        id          TEXT PRIMARY KEY,
        profile     TEXT NOT NULL,
        certificate TEXT NOT NULL,            -- serial number, hexadecimal
        created     REAL NOT NULL,
        revoked     REAL                      -- NULL while valid
    ) STRICT;
    CREATE TABLE presence (                   -- what the server heard last of each device
        device      TEXT PRIMARY KEY,
        online      INTEGER NOT NULL,
        session     INTEGER NOT NULL,
        seen        REAL NOT NULL,
        state       BLOB NOT NULL,            -- encoded wire State
        report      BLOB                      -- encoded wire Report
    ) STRICT;
    CREATE TABLE versions (
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        created     REAL NOT NULL,
        layout      BLOB NOT NULL,            -- msgpack of the parent Layout
        weights     BLOB NOT NULL,            -- SHA-256 of the parent's float32 vector in the blob store
        PRIMARY KEY (model, version)
    ) STRICT;
    CREATE TABLE variants (
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        profile     TEXT NOT NULL,
        variant     TEXT NOT NULL,
        precision   TEXT NOT NULL,
        parameters  INTEGER NOT NULL,
        bytes       INTEGER NOT NULL,         -- of all files together
        budget      INTEGER NOT NULL,
        accuracy    REAL,                     -- on the hold-out set at push, NULL without one
        manifest    BLOB NOT NULL,            -- encoded wire Signed
        PRIMARY KEY (model, version, profile)
    ) STRICT;
    CREATE TABLE trainings (
        id          INTEGER PRIMARY KEY,
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        plan        BLOB NOT NULL,            -- msgpack of Plan
        holdout     TEXT NOT NULL DEFAULT '', -- source name the server evaluates on
        state       TEXT NOT NULL,            -- running, stopped, finished
        first       INTEGER NOT NULL,         -- its first round; rounds count on over the trainings of a version
        started     REAL NOT NULL
    ) STRICT;
    CREATE TABLE rounds (
        training    INTEGER NOT NULL,
        round       INTEGER NOT NULL,         -- from 1 for each version
        opened      REAL NOT NULL,
        closed      REAL,                     -- NULL while open
        weights     BLOB NOT NULL,            -- SHA-256 of the parent vector that the round's devices start from
        result      BLOB,                     -- SHA-256 of the parent vector after aggregation
        accuracy    REAL,                     -- of the result, on the hold-out set
        loss        REAL,
        uplink      INTEGER NOT NULL DEFAULT 0,
        downlink    INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (training, round)
    ) STRICT;
    CREATE TABLE updates (
        training    INTEGER NOT NULL,
        device      TEXT NOT NULL,
        round       INTEGER NOT NULL,         -- the round the device trained for
        counted     INTEGER,                  -- the round it was aggregated in, NULL until then
        variant     TEXT NOT NULL,
        samples     INTEGER NOT NULL,
        loss        REAL NOT NULL,
        received    REAL NOT NULL,
        sha256      BLOB NOT NULL,
        data        BLOB NOT NULL,
        PRIMARY KEY (training, device, round)
    ) STRICT;
    CREATE TABLE counters (
        name        TEXT PRIMARY KEY,
        value       INTEGER NOT NULL
    ) STRICT;
    """,
)


def open_database(path: Path) -> sqlite3.Connection:
    """Open, creating or migrating as needed.

    Raises:
        StoreError: the file cannot be opened, is no database, or comes from a newer edgefl.
    """
    try:
        database = sqlite3.connect(path, timeout=30.0)
        database.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            database.execute(f"PRAGMA {pragma}")
        with database:
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            for step, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version={step}")
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot open the fleet database {path}", found=str(error), remedy="Check the disk and the file's permissions"
        ) from error
    if version > len(MIGRATIONS):
        database.close()
        raise StoreError(
            f"the fleet database {path} comes from a newer edgefl",
            expected=f"schema {len(MIGRATIONS)} or lower",
            found=str(version),
            remedy="Upgrade edgefl",
        )
    return database
