"""A fleet of slow links, each with its queue: what the server sends for all of them, and how long the last one waits."""

import random

import pytest

import toylinks as toy
from edgefl.wire.files import BLOCK_SIZE

FILE = toy.File(24)
RATE = 16_000.0
IDEAL = FILE.blocks * BLOCK_SIZE / RATE


def fleet(count, joins, seed):
    """Links of 14 to 18 KB/s that join within so many seconds."""
    rng = random.Random(seed)
    return [
        toy.Board(f"d{n}", RATE * rng.uniform(0.88, 1.12), rng.uniform(0.0, joins), rng.randrange(FILE.blocks))
        for n in range(count)
    ]


@pytest.mark.parametrize(("count", "joins"), [(1, 0.0), (6, 5.0), (6, 30.0)])
def test_slow_links_share_and_nobody_waits_long(count, joins):
    """Six slow links out of step cost little more than two files, and the last one has its file in 2.5 times the time."""
    files, waits = [], []
    for seed in range(3):
        boards = fleet(count, joins, seed)
        files.append(toy.simulate(FILE, boards, seed).total() / FILE.blocks)
        waits.append(max(board.finished - board.joins for board in boards))
    assert sum(files) / 3 <= (1.1 if count == 1 else 2.2)
    assert max(waits) <= (1.2 if count == 1 else 2.5) * IDEAL
