"""Presence: what the server keeps of births, deaths and reports."""

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.store.database import Database, open_database, transaction
from edgefl.store.presence import Presence, PresenceBook, presences
from edgefl.wire.presence import Installed, Report, State


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """An empty fleet's."""
    return open_database(tmp_path / "fleet.sqlite")


def write(database: Database, book: PresenceBook) -> dict[str, Presence]:
    """Write a book down; what the database says then."""
    with transaction(database):
        book.write(database)
    book.clear()
    return presences(database)


def birth(session: int) -> State:
    """A birth with an inventory."""
    return State(session, online=True, profile="big", models=(Installed("m", session, "w1"),))


def death(session: int) -> State:
    """A will."""
    return State(session, online=False)


def test_death_keeps_the_inventory_of_the_birth(database: Database) -> None:
    """A dead device is offline, and what it held is still known."""
    book = PresenceBook()
    book.state("a", birth(3), 1.0)
    book.state("a", death(3), 2.0)
    found = write(database, book)["a"]
    assert (found.online, found.seen, found.state.models) == (False, 2.0, (Installed("m", 3, "w1"),))


@pytest.mark.parametrize("together", [True, False])
def test_late_will_of_an_older_session_is_ignored(database: Database, *, together: bool) -> None:
    """The will of a session that has been followed by a newer one says nothing about it."""
    book = PresenceBook()
    book.state("a", birth(4), 1.0)
    if not together:
        write(database, book)
    book.state("a", death(3), 2.0)
    assert write(database, book)["a"].online


def test_device_on_a_new_card_is_seen_although_it_counts_from_one_again(database: Database) -> None:
    """A birth with a smaller session number than the last one counts, and so does its own death."""
    book = PresenceBook()
    book.state("a", birth(57), 1.0)
    write(database, book)
    book.state("a", birth(1), 2.0)
    assert write(database, book)["a"].state.session == 1
    book.state("a", death(1), 3.0)
    assert not write(database, book)["a"].online


def test_report_before_any_birth_shows_the_device(database: Database) -> None:
    """A device that is known only by a report is online; its death is believed."""
    book = PresenceBook()
    book.report("a", Report("m", 1, 2, "training"), 1.0)
    found = write(database, book)["a"]
    assert (found.online, found.report and found.report.step) == (True, "training")
    book.state("a", death(9), 2.0)
    assert not write(database, book)["a"].online


def test_empty_book_is_empty(database: Database) -> None:
    """A book that has been written down says so, so that nothing is written for nothing."""
    book = PresenceBook()
    assert not book
    book.state("a", birth(1), 1.0)
    assert book
    write(database, book)
    assert not book


EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("bdr"), st.integers(1, 4)), max_size=25)


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.integers(1, 8))
def test_writing_seldom_is_writing_often(tmp_path_factory: pytest.TempPathFactory, events: list, every: int) -> None:
    """Whether the book is written down after each event or after many, the database says the same."""
    found = []
    for stride in (1, every):
        with closing(open_database(tmp_path_factory.mktemp("presence") / "fleet.sqlite")) as database:
            database.execute("PRAGMA synchronous=OFF")
            book = PresenceBook()
            for now, (device, kind, session) in enumerate(events, start=1):
                if kind == "r":
                    book.report(device, Report("m", 1, session, "training"), float(now))
                else:
                    book.state(device, birth(session) if kind == "b" else death(session), float(now))
                if now % stride == 0:
                    write(database, book)
            write(database, book)
            found.append({d: (p.online, p.state, p.report) for d, p in presences(database).items()})
    assert found[0] == found[1]
