"""The fleet's SQLite database: one file, one schema (`edgefl.store.schema`), one way to open it.

Rules: every writer uses short transactions (`with transaction(database):`); WAL lets the command line read and write while the
server runs; `synchronous=FULL` makes a committed transaction survive a power cut. What SQLite cannot do now (locked, disk full,
damaged) is a `StoreError` wherever it happens; an `sqlite3.IntegrityError` is an answer, not a failure, and stays what it is.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from edgefl.errors import StoreError
from edgefl.store.schema import MIGRATIONS

CACHE_KIB = 2048
"""Most memory for pages of the file, which fills up while a server runs, and then no more."""
BUSY_SECONDS = 30.0
"""How long a command waits for a database that another one holds."""

_ANSWERS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


class Database(sqlite3.Connection):
    """A connection that says in our words what SQLite cannot do now."""

    def __init__(self, path: Path, busy: float) -> None:
        """Connect; `busy` is how many seconds to wait for another writer. Raises StoreError."""
        self.path = path
        with self._worded():
            super().__init__(path, timeout=busy)
        self.row_factory = sqlite3.Row

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As `sqlite3.Connection.execute`. Raises StoreError."""
        with self._worded():
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """As `sqlite3.Connection.executemany`. Raises StoreError."""
        with self._worded():
            return super().executemany(sql, parameters)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Literal[False]:
        """Commit, or roll back after an exception. Raises StoreError when the commit fails; then nothing has changed."""
        with self._worded():
            return super().__exit__(kind, error, trace)

    @contextmanager
    def _worded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if isinstance(error, _ANSWERS):
                raise
            raise StoreError(f"cannot use the fleet database {self.path}", found=str(error), remedy=_remedy(error)) from error


def _remedy(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "Another program holds it: let that end, then try again"
        case sqlite3.SQLITE_FULL:
            return "Free some disk space; nothing was half written"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "Restore the fleet directory from a backup"
    return "Check the disk and the file's permissions"


def open_database(path: Path, *, busy: float = BUSY_SECONDS) -> Database:
    """Open, creating or migrating as needed.

    Args:
        path: the file.
        busy: seconds to wait when another process is writing, for this and every later operation.

    Raises:
        StoreError: the file cannot be opened, is no database, or comes from a newer edgefl.
    """
    database = Database(path, busy)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{CACHE_KIB}"):
            database.execute(f"PRAGMA {pragma}")
        version = _migrate(database)
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the fleet database {path} comes from a newer edgefl",
                expected=f"schema {len(MIGRATIONS)} or lower",
                found=str(version),
                remedy="Upgrade edgefl",
            )
    except StoreError:
        database.close()
        raise
    return database


def _migrate(database: Database) -> int:
    """Bring the schema up to date; the version that it had."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version >= len(MIGRATIONS):
        return int(version)  # the usual case takes no lock
    with transaction(database):
        (version,) = database.execute("PRAGMA user_version").fetchone()
        for step, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements.split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version={step}")
    return int(version)


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block is written, or nothing; nobody else writes meanwhile.

    Raises:
        StoreError: the database cannot be written now.
    """
    with database:
        database.execute("BEGIN IMMEDIATE")
        yield


def changes_by_others(database: sqlite3.Connection) -> int:
    """A number that differs from the last one if another connection has committed anything since."""
    return int(database.execute("PRAGMA data_version").fetchone()[0])
