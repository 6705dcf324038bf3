"""Devices that begin seconds after each other share what is sent: the price is one file, and nobody waits long."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toylinks as toy
from edgefl.server.delivery import BLOCK_COST, MERGE_WINDOW, Delivery, step, wake_at
from edgefl.server.delivery_events import Offered, SendBlocks, Tick, Wanted
from edgefl.server.gather import GATHER, PATIENCE, QUIET
from edgefl.wire.blocks import want
from edgefl.wire.files import BLOCK_SIZE, FileRef

FILE = toy.File(60)
FAST = 10e6
ALONE = 1.5
"""Seconds that one such device takes for the file: its requests double in size, and each takes a tenth of a second and more."""
SHA256 = bytes(32)


def fleet(joins, seed=0):
    """Fast links that begin at these times."""
    rng = random.Random(seed)
    return [toy.Board(f"d{number}", FAST, at, rng.randrange(FILE.blocks)) for number, at in enumerate(joins)]


def uniform(count, seconds, seed):
    """Times within so many seconds."""
    rng = random.Random(seed)
    return [rng.uniform(0.0, seconds) for _ in range(count)]


def files(boards, seed=0, **options):
    """Files' worth of blocks that the server sends until all have theirs."""
    return toy.simulate(FILE, boards, seed, **options).total() / FILE.blocks


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 5.0])
def test_two_hundred_devices_that_begin_within_seconds_cost_one_file(spread):
    """With starts over 0 to 5 s the server sends at most 1.3 files, and all are done soon after the last one has begun."""
    boards = fleet(uniform(200, spread, seed=int(spread * 10)))
    assert files(boards) <= 1.3
    assert max(board.finished for board in boards) <= spread + QUIET + ALONE
    assert max(board.finished - board.joins for board in boards) <= GATHER + ALONE


@pytest.mark.parametrize(("expected", "wait"), [({"a"}, 0.0), (set(), MERGE_WINDOW), ({"b"}, MERGE_WINDOW)])
def test_one_device_does_not_wait(expected, wait):
    """The only one to be expected is answered at once; where nobody or one other is, the merge window is all."""
    state, _ = step(Delivery(), Offered(SHA256, 10), 0.0)
    state, _ = step(state, Wanted("a", asking(0), frozenset(expected)), 1.0)
    assert wake_at(state) == 1.0 + wait


def test_few_devices_wait_a_moment():
    """The wait is in proportion to how many are missing: three of four that never ask cost less than a tenth of a second."""
    state, _ = step(Delivery(), Offered(SHA256, 10), 0.0)
    state, _ = step(state, Wanted("a", asking(0), frozenset("abcd")), 1.0)
    assert wake_at(state) == pytest.approx(1.0 + 3 * PATIENCE)


def test_when_all_have_asked_it_begins():
    """The last one that is expected ends the wait."""
    state, _ = step(Delivery(), Offered(SHA256, 10), 0.0)
    everybody = frozenset(f"d{number}" for number in range(100))
    for number in range(100):
        assert wake_at(state) is None or wake_at(state) > 1.3
        state, _ = step(state, Wanted(f"d{number}", asking(number % 10), everybody), 1.0 + number / 250)
    assert wake_at(state) <= 1.4


def test_devices_that_never_ask_cost_half_a_second():
    """Of three hundred that are expected two hundred want nothing: the others wait for no more than the quiet after them."""
    boards = fleet(uniform(100, 1.0, seed=1))
    assert files(boards, absent=200) <= 1.1
    assert max(board.finished for board in boards) <= 1.0 + QUIET + ALONE


def test_a_trickle_never_blocks():
    """Devices that come one a second for a minute wait half a second each, however many are still expected."""
    boards = fleet([float(number) for number in range(60)])
    assert files(boards, absent=100) <= 60.0
    assert max(board.finished - board.joins for board in boards) <= QUIET + 2 * ALONE


def test_a_steady_stream_of_latecomers_is_served_in_passes():
    """Ten devices a second for fifteen seconds cost a file every few seconds, and none waits longer than the bound."""
    boards = fleet(uniform(150, 15.0, seed=2))
    assert files(boards, absent=200) <= 15.0 / GATHER + 2.0
    assert max(board.finished - board.joins for board in boards) <= GATHER + 2 * ALONE


def test_latecomers_share_what_a_limited_server_sends():
    """While the file goes out at 500 KB/s, twenty who come in that time get its rest with the others, and its beginning once."""
    joins = [0.0] * 20 + [0.15 * number for number in range(1, 21)]
    boards = fleet(joins)
    assert files(boards, rate=500e3) <= 2.0
    assert max(board.finished for board in boards) <= 2.1 * FILE.blocks * BLOCK_COST / 500e3


def test_without_gathering_each_latecomer_is_served_at_once():
    """An operator who sets the bound to zero has the merge window alone."""
    boards = fleet(uniform(20, 5.0, seed=3))
    files(boards, gather=0.0)
    assert max(board.came[0][0] - board.joins for board in boards) <= 0.3


def asking(*indices):
    """A request for these blocks by a device that begins."""
    return want(FileRef("weights", SHA256, BLOCK_SIZE, (bytes(16),)), indices)


@settings(max_examples=60, deadline=None)
@given(
    asks=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sets(st.integers(0, 15), min_size=1, max_size=8),
            st.sampled_from([0.0, 0.003, 0.06, 0.3, 0.7, 3.0]),
        ),
        min_size=1,
        max_size=60,
    ),
    rate=st.sampled_from([None, 5.0 * BLOCK_COST]),
)
def test_in_a_pass_each_block_goes_out_once_and_no_request_waits_longer_than_the_bound(asks, rate):
    """Whoever asks when: as many sendings of a block as passes at most; and without a rate, none later than the bound."""
    expected = frozenset(f"d{number}" for number in range(200))
    state, _ = step(Delivery(rate=rate), Offered(SHA256, 16), 0.0)
    now, sent, open_since = 100.0, [], {}

    def run(until):
        nonlocal state, now
        while (due := wake_at(state)) is not None and max(now, due) <= until:
            now = max(now, due)
            state, effects = step(state, Tick(8 << 20), now)
            for index in [index for effect in effects if isinstance(effect, SendBlocks) for index in effect.indices]:
                sent.append(index)
                waited = now - open_since.pop(index)
                assert rate or waited <= GATHER + 2 * MERGE_WINDOW
        now = max(now, until)

    for device, indices, pause in asks:
        run(now + pause)
        before = state.counts
        state, _ = step(state, Wanted(f"d{device}", asking(*indices), expected), now)
        lane = next(iter(state.lanes.values()))
        open_since |= {index: now for index in indices if (lane.want | lane.held) >> index & 1 and index not in open_since}
        assert state.counts.asked == before.asked + len(indices)
    run(now + 1000.0)
    assert wake_at(state) is None
    assert not open_since
    assert max(sent.count(index) for index in range(16)) <= state.counts.passes
