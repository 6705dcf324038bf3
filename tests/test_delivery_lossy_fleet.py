"""A fleet behind links that TCP has made slow and bursty, with long queues in the broker: what is late is not taken for lost."""

import random

import pytest

import toylinks as toy
from edgefl.server.gather import PATIENCE
from edgefl.wire.files import BLOCK_SIZE

FILE = toy.File(100)
RATE = 33_000.0
"""Bytes per second of one TCP connection with 5 % loss and round trips of 200 ms."""
FAST = 10e6
STREAM = FILE.blocks * BLOCK_SIZE / RATE


def fleet(seed, count=10, fast=0, joins=0.02, spread=0.5):
    """Lossy links, the first `fast` of them without loss, that begin within `joins` seconds."""
    rng = random.Random(seed)
    boards = []
    for number in range(count):
        rate, share = (FAST, 0.0) if number < fast else (RATE, spread)
        boards.append(toy.Board(f"d{number}", rate, rng.uniform(0.0, joins), rng.randrange(FILE.blocks), share))
    return boards


def files(boards, seed):
    """Files' worth of blocks that the server sends until all have theirs."""
    return toy.simulate(FILE, boards, seed).total() / FILE.blocks


def slowest(boards):
    """Seconds from joining to the end, for the last one."""
    return max(board.finished - board.joins for board in boards)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_ten_lossy_links_cost_one_file_and_the_time_of_one_stream(seed, spread):
    """The queue before each link is many blocks long; hardly one is sent twice, and nobody goes alone."""
    boards = fleet(seed, spread=spread)
    assert files(boards, seed) <= 1.1
    assert slowest(boards) <= 1.15 * STREAM
    assert not any(board.state.alone for board in boards)


@pytest.mark.parametrize("seed", range(2))
def test_a_device_that_reconnects_is_served_within_seconds(seed):
    """What was under way when its connection ended is sent again as soon as it asks, and the others do not leave for that."""
    boards = fleet(seed)
    boards[0].cuts, boards[1].cuts = [(30.0, 33.0)], [(60.0, 75.0)]
    assert files(boards, seed) <= 1.6
    for board, back in ((boards[0], 33.0), (boards[1], 75.0)):
        first, _, third = [when for when, _ in board.came if when >= back][:3]
        assert first - back <= 5.0
        assert third - back <= 10.0
    assert slowest(boards) <= 1.7 * STREAM
    assert not any(board.state.alone for board in boards)


@pytest.mark.parametrize("late", [None, "slow", "fast"])
def test_fast_devices_are_fast_beside_lossy_ones(late):
    """Five links of 10 MB/s take seconds, together, before or after five lossy ones, and these lose nothing by it.

    Those that are there first wait a moment for the five others, which are expected.
    """
    boards = fleet(1, fast=5)
    for board in boards:
        board.joins += 20.0 if late and (board.rate == FAST) == (late == "fast") else 0.0
    assert files(boards, 1) <= (1.3 if late is None else 2.1)
    assert slowest(boards[:5]) <= (2.0 + 5 * PATIENCE if late != "fast" else 5.0)
    assert slowest(boards[5:]) <= (1.15 if late != "fast" else 1.5) * STREAM
