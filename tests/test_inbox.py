"""The inbox: updates put together from parts, in bounded memory."""

import hashlib
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import UpdateError
from edgefl.server.inbox import OVERHEAD, Inbox
from edgefl.wire.rounds import PART_SIZE, UpdatePart


def parts_of(data: bytes, size: int = PART_SIZE, sha256: bytes | None = None) -> list[UpdatePart]:
    """An update's parts."""
    cuts = range(0, len(data), size)
    digest = sha256 or hashlib.sha256(data).digest()
    return [
        UpdatePart("m", 1, "w1", 1, 10, 1.0, 1.0, digest, part, len(cuts), data[start : start + size])
        for part, start in enumerate(cuts)
    ]


def test_one_part_is_the_whole() -> None:
    """An update that fits one message is handed out at once, and nothing stays behind."""
    inbox = Inbox()
    assert inbox.add("a", parts_of(b"hello")[0]) == b"hello"
    assert inbox.held == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_parts_come_together_in_any_order_and_number(count: int, rng: random.Random) -> None:
    """Whatever the order and however often a part is repeated, the update comes out once all are there."""
    inbox, data = Inbox(), rng.randbytes(100 * count)
    pieces = parts_of(data, 100)
    arrivals = pieces + rng.choices(pieces, k=count)
    rng.shuffle(arrivals)
    got = [inbox.add("a", part) for part in arrivals]
    assert set(got) <= {None, data}
    assert data in got


def test_newer_update_of_a_device_replaces_its_incomplete_one() -> None:
    """A device has one incomplete update: the parts of another one push it out, and those of its own again do not mix."""
    inbox = Inbox()
    old, new = parts_of(b"o" * 300, 100), parts_of(b"n" * 300, 100)
    for part in (*old[:2], *new[:2]):
        assert inbox.add("a", part) is None
    assert inbox.held == 2 * (100 + OVERHEAD)
    assert inbox.add("a", old[2]) is None
    assert [inbox.add("a", part) for part in old[:2]] == [None, b"o" * 300]


def test_devices_do_not_share_an_update() -> None:
    """Parts of the same update from two devices are two incomplete updates."""
    inbox, pieces = Inbox(), parts_of(b"x" * 200, 100)
    assert inbox.add("a", pieces[0]) is None
    assert inbox.add("b", pieces[1]) is None
    assert inbox.add("a", pieces[1]) == b"x" * 200


def test_damage_is_found_and_forgotten() -> None:
    """What does not match its SHA-256 is refused, and the device can send again."""
    inbox, good = Inbox(), parts_of(b"x" * 200, 100)
    with pytest.raises(UpdateError, match="damaged"):
        inbox.add("a", parts_of(b"y", sha256=good[0].sha256)[0])
    assert inbox.held == 0
    assert [inbox.add("a", part) for part in good] == [None, b"x" * 200]


@pytest.mark.parametrize(("part", "parts"), [(1, 1), (5, 3), (0, 16384)])
def test_impossible_part_is_refused(part: int, parts: int) -> None:
    """A part beyond the last one, or of an update that the budget could never hold, is refused before it is kept."""
    inbox = Inbox(budget=1 << 20)
    with pytest.raises(UpdateError, match="impossible"):
        inbox.add("a", UpdatePart("m", 1, "w1", 1, 1, 1.0, 1.0, bytes(32), part, parts, b"x"))
    assert inbox.held == 0


SIZES = st.sampled_from([1, 1000, PART_SIZE // 2, PART_SIZE])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.integers(0, 3), SIZES), max_size=80))
def test_memory_stays_within_the_budget(arrivals: list[tuple[str, int, int, int]]) -> None:
    """Whatever parts arrive from whomever, the bytes held never exceed the budget."""
    budget = 4 * (PART_SIZE + OVERHEAD)
    inbox = Inbox(budget)
    for device, update, number, size in arrivals:
        with suppress(UpdateError):  # complete, and not what it promised to be
            inbox.add(device, UpdatePart("m", 1, "w1", 1, 1, 1.0, 1.0, bytes([update]) * 32, number, 4, bytes(size)))
        held = sum(len(data) for one in inbox._incomplete.values() for data in one.data.values())
        assert held <= inbox.held <= budget


def test_device_that_floods_loses_its_own_update() -> None:
    """When the budget is used up, the largest incomplete update goes, and the small one of another device stays."""
    inbox = Inbox(budget=4 * (PART_SIZE + OVERHEAD))
    small = parts_of(b"s" * 200, 100)
    inbox.add("small", small[0])
    for device in ("flood", "another flood"):
        for part in parts_of(bytes(4 * PART_SIZE))[:3]:
            inbox.add(device, part)
    assert inbox.add("small", small[1]) == b"s" * 200
