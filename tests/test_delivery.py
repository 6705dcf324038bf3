"""The delivery machine: each wanted block once, fairly, at a bounded rate and in bounded memory."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.server.delivery import (
    BLOCK_COST,
    MOST_FILES,
    MOST_PER_REQUEST,
    MOST_SHARED,
    Delivery,
    step,
    wake_at,
)
from edgefl.server.delivery_events import Effect, Offered, Refuse, SendBlocks, Tick, Wanted, Withdrawn
from edgefl.server.lanes import MOST_SLOTS, REMEMBERED, slot_of
from edgefl.wire.blocks import want
from edgefl.wire.files import FileRef, Want

ROOM = 8 << 20
FILE = bytes(32)
OTHER = bytes([1] * 32)


def request(sha256: bytes, *indices: int) -> Want:
    """A request for these blocks."""
    return want(FileRef("weights", sha256, 1, (bytes(16),)), indices)


def serving(*files: bytes, blocks: int = 1000, rate: float | None = None) -> Delivery:
    """A machine that serves these files."""
    state = Delivery(rate=rate)
    for sha256 in files:
        state, _ = step(state, Offered(sha256, blocks), 0.0)
    return state


def sent(effects: tuple[Effect, ...]) -> list[tuple[bytes, int]]:
    """File and index of each block sent."""
    return [(effect.sha256, index) for effect in effects if isinstance(effect, SendBlocks) for index in effect.indices]


def test_fleet_that_joins_together_gets_each_block_once() -> None:
    """A hundred devices that ask for the same blocks within the merge window cause one sending, after the window."""
    state = serving(FILE)
    for number in range(100):
        state, effects = step(state, Wanted(f"d{number}", request(FILE, *range(8))), 10.0 + number / 10_000)
        assert effects == ()
    assert wake_at(state) == 10.05
    assert step(state, Tick(ROOM), 10.04)[1] == ()
    state, effects = step(state, Tick(ROOM), 10.05)
    assert effects == (SendBlocks(FILE, tuple(range(8))),)
    assert wake_at(state) is None
    assert (state.counts.asked, state.counts.merged, state.counts.sent) == (800, 792, 8)


def test_request_that_crosses_the_blocks_is_not_answered_twice() -> None:
    """What was sent within the last half second is not sent again; afterwards it is, for what got lost and for latecomers."""
    state = serving(FILE)
    state, _ = step(state, Wanted("a", request(FILE, 0, 1)), 1.0)
    state, effects = step(state, Tick(ROOM), 1.05)
    assert len(sent(effects)) == 2
    state, _ = step(state, Wanted("b", request(FILE, 1, 2)), 1.2)
    state, effects = step(state, Tick(ROOM), 1.25)
    assert sent(effects) == [(FILE, 2)]
    assert state.counts.crossed == 1
    state, _ = step(state, Wanted("b", request(FILE, 1)), 3.3)
    state, effects = step(state, Tick(ROOM), 3.35)
    assert sent(effects) == [(FILE, 1)]


def test_what_is_on_its_way_to_a_slow_link_is_not_sent_again() -> None:
    """A device that is six seconds behind gets nothing that went out within these, and everything older or alone."""
    state = serving(FILE)
    for moment, index in ((1.0, 1), (5.0, 2), (9.0, 3)):
        state, _ = step(state, Wanted("a", request(FILE, index)), moment)
        state, _ = step(state, Tick(ROOM), moment + 0.05)
    slow = request(FILE, 1, 2, 3)
    state, _ = step(state, Wanted("b", Want(slow.sha256, slow.first, slow.bitmap, behind=6)), 10.0)
    state, effects = step(state, Tick(ROOM), 10.05)
    assert sent(effects) == [(FILE, 1)]
    assert state.counts.crossed == 2
    state, _ = step(state, Wanted("b", request(FILE, 2, 3)), 10.1)
    state, effects = step(state, Tick(ROOM), 10.15)
    assert sent(effects) == [(FILE, 2), (FILE, 3)]


def test_what_was_sent_after_the_block_that_was_heard_is_late_and_not_lost() -> None:
    """Minutes later nothing is sent again that went out after it; what went out before is lost, and sent at once."""
    state = serving(FILE)
    moments = {1: 100.0, 2: 140.0, 3: 180.0, 4: 180.01}
    for index, moment in moments.items():
        state, _ = step(state, Wanted("a", request(FILE, index)), moment)
        state, _ = step(state, Tick(ROOM), moment + 0.05)
    plain = request(FILE, 1, 2, 3, 4)
    for heard, expected in ((2, [1]), (3, [1, 2]), (1, [])):
        asking = Want(plain.sha256, plain.first, plain.bitmap, heard=slot_of(moments[heard] + 0.05))
        after, _ = step(state, Wanted(f"b{heard}", asking), 280.0)
        assert sent(step(after, Tick(ROOM), 280.05)[1]) == [(FILE, index) for index in expected]


@pytest.mark.parametrize("heard", [0, 1 << 53])
def test_who_has_heard_nothing_gets_everything(heard: int) -> None:
    """Neither a new connection nor a number of another clock keeps a device waiting: all but the last half second is sent."""
    state = serving(FILE)
    for index, moment in ((1, 100.0), (2, 120.0), (3, 139.8)):
        state, _ = step(state, Wanted("a", request(FILE, index)), moment)
        state, _ = step(state, Tick(ROOM), moment + 0.05)
    plain = request(FILE, 1, 2, 3)
    state, _ = step(state, Wanted("a", Want(plain.sha256, plain.first, plain.bitmap, heard=heard)), 140.0)
    assert sent(step(state, Tick(ROOM), 140.05)[1]) == [(FILE, 1), (FILE, 2)]


def test_who_begins_to_listen_gets_what_was_sent_a_moment_ago() -> None:
    """Devices that start a moment too late for the first blocks do not wait for them."""
    state = serving(FILE)
    state, _ = step(state, Wanted("a", request(FILE, 1, 2)), 1.0)
    state, _ = step(state, Tick(ROOM), 1.05)
    plain = request(FILE, 1)
    state, _ = step(state, Wanted("b", Want(plain.sha256, plain.first, plain.bitmap, fresh=True)), 1.1)
    assert sent(step(state, Tick(ROOM), 1.2)[1]) == [(FILE, 1)]


def test_unknown_files_and_blocks_are_refused_and_ignored() -> None:
    """A file that is not served, or no longer, is refused by name; a block beyond the end is ignored; both are counted."""
    state = serving(FILE, blocks=10)
    state, effects = step(state, Wanted("a", request(OTHER, 0)), 0.0)
    assert effects == (Refuse("a", OTHER, "no such file"),)
    state, effects = step(state, Wanted("a", request(FILE, 9, 10, 11)), 0.0)
    assert effects == ()
    state, effects = step(state, Tick(ROOM), 1.0)
    assert sent(effects) == [(FILE, 9)]
    state, _ = step(state, Wanted("a", request(FILE, 5)), 1.0)
    state, _ = step(state, Withdrawn(FILE), 1.0)
    assert step(state, Tick(ROOM), 2.0)[1] == ()
    state, effects = step(state, Wanted("a", request(FILE, 0)), 2.0)
    assert isinstance(effects[0], Refuse)
    assert (state.counts.refused, state.counts.ignored) == (2, 2)


def test_room_in_the_link_is_respected() -> None:
    """No more is sent at a time than the link can take; the rest follows, lowest first, and nothing is lost."""
    state = serving(FILE)
    state, _ = step(state, Wanted("a", request(FILE, *range(20))), 0.0)
    now, got = 1.0, []
    for room in (0, -5, 3 * BLOCK_COST, 3 * BLOCK_COST + 1, BLOCK_COST - 1, ROOM):
        state, effects = step(state, Tick(room), now)
        assert len(sent(effects)) <= max(0, room) // BLOCK_COST
        got += sent(effects)
        due = wake_at(state)
        assert due is None or due > now
        now += 0.1
    assert got == [(FILE, index) for index in range(20)]


def test_rate_is_kept_and_files_take_turns() -> None:
    """At 10 blocks per second a small file is done after its share, beside a large one that was there first."""
    state = serving(FILE, OTHER, rate=10.0 * BLOCK_COST)
    for start in range(0, 1000, 50):
        state, _ = step(state, Wanted("a", request(FILE, *range(start, start + 50))), 0.0)
    state, _ = step(state, Wanted("b", request(OTHER, *range(5))), 0.0)
    now, got = 0.05, []
    while len(got) < 100:
        state, effects = step(state, Tick(ROOM), now)
        got += [(name, now) for name, _ in sent(effects)]
        now = wake_at(state) or now
    small = [when for name, when in got if name == OTHER]
    assert len(small) == 5
    assert small[-1] < 1.5
    assert 8.0 < now < 11.0


def test_large_requests_are_heard_in_part() -> None:
    """One request moves at most `MOST_PER_REQUEST` blocks; the rest must be asked for again."""
    state = serving(FILE)
    state, _ = step(state, Wanted("a", Want(FILE, 0, b"\xff" * 64)), 0.0)
    state, effects = step(state, Tick(ROOM * 10), 1.0)
    assert len(sent(effects)) == MOST_PER_REQUEST
    assert state.counts.ignored == 512 - MOST_PER_REQUEST


def test_memory_stays_bounded_under_endless_requests() -> None:
    """Whatever devices ask for, the state holds no more than its caps; a flood of files is refused, and served after a while."""
    files = [number.to_bytes(32, "big") for number in range(MOST_FILES + 10)]
    state = serving(*files)
    assert len(state.files) == MOST_FILES
    rng = random.Random(0)
    refused = 0
    for number in range(5000):
        state, effects = step(state, Wanted(f"d{number}", request(rng.choice(files[:1000]), rng.randrange(1000))), number / 1e6)
        refused += len(effects)
        assert len(state.lanes) <= MOST_SHARED
    assert refused > 1000
    now = 1.0
    for _ in range(200):
        state, _ = step(state, Tick(ROOM), now)
        assert all(len(lane.sent) <= MOST_SLOTS for lane in state.lanes.values())
        state, _ = step(state, Wanted("a", request(files[0], rng.randrange(1000))), now)
        now += 0.01
    while (due := wake_at(state)) is not None:
        now = max(now, due)
        state, _ = step(state, Tick(ROOM), now)
    state, _ = step(state, Tick(ROOM), now + 1.0 + REMEMBERED)
    assert state.lanes == {}


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 3), st.sets(st.integers(0, 63), min_size=1, max_size=10), st.sampled_from([0.0, 0.01, 0.06, 0.7])
        ),
        min_size=1,
        max_size=60,
    ),
    rate=st.sampled_from([None, 5.0 * BLOCK_COST]),
)
def test_every_request_is_answered_or_was_just_answered(events: list[tuple[int, set[int], float]], rate: float | None) -> None:
    """Each block asked for is sent after the request, or was sent within the half second before it; never twice in between."""
    state = serving(FILE, blocks=64, rate=rate)
    now, log, asked = 100.0, [], []
    for kind, indices, pause in events:
        now += pause
        if kind:
            state, _ = step(state, Wanted("d", request(FILE, *indices)), now)
            asked += [(index, now) for index in indices]
        state, effects = step(state, Tick(ROOM), now)
        log += [(index, now) for _, index in sent(effects)]
    while (due := wake_at(state)) is not None:
        now = max(now, due)
        state, effects = step(state, Tick(ROOM), now)
        log += [(index, now) for _, index in sent(effects)]
    for index, when in asked:
        assert any(other == index and moment > when - 0.5 for other, moment in log)
    assert len(log) <= len(asked)
    assert all(0 <= index < 64 for index, _ in log)
