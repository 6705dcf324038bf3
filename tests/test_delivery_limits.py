"""What one device may cost the fleet: repetitions and requests are limited, honest devices are not, and memory is bounded."""

import random

from edgefl.server.askers import (
    FORGOTTEN_AFTER,
    MOST_ASKERS,
    MOST_REMEMBERED,
    REPEAT_BURST,
    REPEAT_RATE,
    REQUEST_BURST,
    REQUEST_RATE,
)
from edgefl.server.delivery import MOST_PER_REQUEST, Delivery, step, wake_at
from edgefl.server.delivery_events import Offered, Refuse, SendBlocks, Tick, Wanted
from edgefl.wire.blocks import want
from edgefl.wire.files import FileRef, Want

ROOM = 64 << 20
FILE = bytes(32)
BLOCKS = 2000


def request(*indices: int, sha256: bytes = FILE, alone: bool = False) -> Want:
    """A request for these blocks."""
    asked = want(FileRef("weights", sha256, 1, (bytes(16),)), indices)
    return Want(asked.sha256, asked.first, asked.bitmap, alone)


def serving(*files: bytes) -> Delivery:
    """A machine that serves these files, or the one."""
    state = Delivery()
    for sha256 in files or (FILE,):
        state, _ = step(state, Offered(sha256, BLOCKS), 0.0)
    return state


def play(state: Delivery, device: str, asks: list[Want], every: float, start: float = 0.0) -> tuple[Delivery, int, int]:
    """Ask at a pace; the state, blocks sent, and requests refused."""
    now, blocks, refused = start, 0, 0
    for ask in asks:
        now += every
        state, effects = step(state, Wanted(device, ask), now)
        refused += sum(isinstance(effect, Refuse) for effect in effects)
        while (due := wake_at(state)) is not None and due <= now + 0.05:
            state, effects = step(state, Tick(ROOM), now + 0.05)
            blocks += sum(len(effect.indices) for effect in effects if isinstance(effect, SendBlocks))
    return state, blocks, refused


def test_a_device_that_asks_for_the_same_blocks_over_and_over_costs_its_bucket() -> None:
    """For a minute of 64 blocks every 0.6 s, a hundredfold of the file's part, little more than the bucket is sent."""
    for alone in (False, True):
        asks = [request(*range(64), alone=alone)] * 100
        state, blocks, refused = play(serving(), "rogue", asks, every=0.6)
        assert blocks <= 64 + REPEAT_BURST + 60.0 * REPEAT_RATE + MOST_PER_REQUEST
        assert state.counts.throttled >= 6400 - blocks - 64
        assert refused == 0  # a part of each request is heard


def test_a_request_of_which_nothing_is_left_is_refused_by_name() -> None:
    """So that the server's log says who asks over and over."""
    state, _, _ = play(serving(), "rogue", [request(*range(64))] * 10, every=0.6)
    state, effects = step(state, Wanted("rogue", request(63)), 6.0)
    assert effects == (Refuse("rogue", FILE, "the same blocks too often"),)
    assert step(state, Wanted("other", request(63)), 6.0)[1] == ()


def test_a_device_that_fetches_each_block_once_is_never_slowed_down() -> None:
    """Two thousand blocks in a second, at four blocks a request, all come."""
    asks = [request(*range(start, start + 8)) for start in range(0, BLOCKS, 8)]
    state, blocks, refused = play(serving(), "honest", asks, every=0.008)
    assert (blocks, refused, state.counts.throttled) == (BLOCKS, 0, 0)


def test_a_throttled_device_does_not_harm_another() -> None:
    """What a rogue may not have, another device that asks for the first time gets."""
    state, _, _ = play(serving(), "rogue", [request(*range(64))] * 30, every=0.6)
    assert state.counts.throttled > 0
    state, blocks, _ = play(state, "honest", [request(*range(64))], every=1.0, start=18.0)
    assert blocks == 64


def test_a_flood_of_requests_is_refused_beyond_its_bucket() -> None:
    """Ten thousand requests in a second, of which the burst and a second's worth are heard."""
    _, _, refused = play(serving(), "rogue", [request(n % BLOCKS) for n in range(10_000)], every=1e-4)
    assert 10_000 - refused <= REQUEST_BURST + REQUEST_RATE + 1


def test_a_device_that_begins_anew_after_a_while_is_new() -> None:
    """A board whose card was replaced fetches everything again, without being taken for a rogue."""
    state, _, _ = play(serving(), "board", [request(*range(64))] * 5, every=0.6)
    throttled = state.counts.throttled
    _, blocks, _ = play(state, "board", [request(*range(64))], every=FORGOTTEN_AFTER + 10.0)
    assert blocks == 64
    assert state.counts.throttled == throttled


def test_memory_is_bounded_for_many_devices_and_files() -> None:
    """More devices than are remembered, each with more files: the oldest are forgotten, and everybody is served."""
    rng = random.Random(0)
    files = [number.to_bytes(32, "big") for number in range(10)]
    state = serving(*files)
    for number in range(MOST_ASKERS + 500):
        for sha256 in rng.sample(files, 2) if number % 50 else files:
            state, effects = step(state, Wanted(f"d{number}", request(1, sha256=sha256)), number / 1e3)
            assert effects == ()
        if number % 200 == 0:
            state, _ = step(state, Tick(ROOM), number / 1e3 + 0.1)
    assert len(state.askers) == MOST_ASKERS
    assert max(len(asker.asked) for asker in state.askers.values()) == MOST_REMEMBERED
    assert "d0" not in state.askers
    assert f"d{MOST_ASKERS}" in state.askers
