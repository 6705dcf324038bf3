"""The books of payload bytes and incidents."""

from contextlib import suppress
from pathlib import Path

import pytest

from edgefl.errors import StoreError
from edgefl.server.complaints import MOST, PERIOD, Complaints
from edgefl.server.traffic import DOWN_OUTSIDE, UP_OUTSIDE, TrafficBook
from edgefl.store.database import Database, open_database, transaction
from edgefl.store.tally import counters


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A fleet's, with an open round 3 of training 7."""
    database = open_database(tmp_path / "fleet.sqlite")
    with transaction(database):
        database.execute("INSERT INTO rounds (training, round, opened, weights) VALUES (7, 3, 0.0, x'')")
    return database


def traffic(database: Database) -> tuple[int, int]:
    """Bytes of the round."""
    return tuple(database.execute("SELECT uplink, downlink FROM rounds").fetchone())


def test_bytes_go_to_the_open_round_of_their_model_and_the_rest_to_the_counters(database: Database) -> None:
    """Nothing is left out and nothing is in two places."""
    book = TrafficBook()
    book.up("m", 10)
    book.down("m", 20)
    book.up("other", 3)
    book.up("", 4)
    book.down("other", 5)
    book.incident("messages refused")
    book.incident("messages refused")
    with transaction(database):
        book.write(database, {"m": (7, 3)})
    assert traffic(database) == (10, 20)
    assert counters(database) == {UP_OUTSIDE: 7, DOWN_OUTSIDE: 5, "messages refused": 2}


def test_written_down_twice_counts_twice_unless_cleared(database: Database) -> None:
    """Bytes add up over many writings; a cleared book is empty."""
    book = TrafficBook()
    for amount in (1, 2, 3):
        book.up("m", amount)
        assert book
        with transaction(database):
            book.write(database, {"m": (7, 3)})
        book.clear()
        assert not book
    assert traffic(database) == (6, 0)


def test_failed_writing_loses_nothing(database: Database) -> None:
    """A transaction that fails leaves the book as it was, and the next one writes everything once."""
    book = TrafficBook()
    book.up("m", 10)
    book.incident("x")
    with suppress(StoreError), transaction(database):
        book.write(database, {"m": (7, 3)})
        raise StoreError("no room")
    assert traffic(database) == (0, 0)
    with transaction(database):
        book.write(database, {"m": (7, 3)})
    assert traffic(database) == (10, 0)
    assert counters(database) == {"x": 1}


def test_complaints_are_said_once_and_not_too_many() -> None:
    """In a period each text is admitted once and a bounded number in all; the next period tells how many were left out."""
    complaints = Complaints()
    lines = [line for n in range(1000) for line in complaints.admit(f"no {n % 100}", 1.0)]
    assert lines == [f"no {n}" for n in range(MOST)]
    left_out, again = complaints.admit("no 0", 1.0 + PERIOD)
    assert (left_out, again) == (f"{1000 - MOST} more complaints were left out", "no 0")
