"""The delivery machine and devices that want to be served alone: at their pace, beside the others, within bounds."""

import pytest

from edgefl.server.delivery import ALONE_EACH, BLOCK_COST, Delivery, step, wake_at
from edgefl.server.delivery_events import Effect, Offered, Refuse, SendBlocks, Tick, Wanted
from edgefl.wire.blocks import want
from edgefl.wire.files import FileRef, Want

ROOM = 8 << 20
FILES = [bytes([number] * 32) for number in range(10)]
FILE = FILES[0]


def request(*indices: int, sha256: bytes = FILE, alone: bool = True) -> Want:
    """A request for these blocks."""
    asked = want(FileRef("weights", sha256, 1, (bytes(16),)), indices)
    return Want(asked.sha256, asked.first, asked.bitmap, alone)


def serving(device_rate: float | None = None, rate: float | None = None) -> Delivery:
    """A machine that serves all files."""
    state = Delivery(rate=rate, device_rate=device_rate)
    for sha256 in FILES:
        state, _ = step(state, Offered(sha256, 1000), 0.0)
    return state


def sent(effects: tuple[Effect, ...]) -> list[tuple[str, int]]:
    """Device and index of each block sent."""
    return [(effect.device, index) for effect in effects if isinstance(effect, SendBlocks) for index in effect.indices]


def test_what_is_asked_alone_is_sent_alone_at_once_and_nothing_else() -> None:
    """No merge window, exactly the blocks asked for, to that device only."""
    state = serving()
    state, _ = step(state, Wanted("slow", request(3, 7)), 1.0)
    assert wake_at(state) == 1.0
    state, effects = step(state, Tick(ROOM), 1.0)
    assert sent(effects) == [("slow", 3), ("slow", 7)]
    assert (state.counts.sent, state.counts.alone) == (2, 2)
    assert wake_at(state) is None


def test_lanes_are_not_merged() -> None:
    """The same block wanted by all and by two devices alone goes out three times."""
    state = serving()
    for device, alone in (("a", True), ("b", True), ("c", False), ("d", False)):
        state, _ = step(state, Wanted(device, request(5, alone=alone)), 1.0)
    state, effects = step(state, Tick(ROOM), 1.05)
    assert sorted(sent(effects)) == [("", 5), ("a", 5), ("b", 5)]


def test_a_block_that_was_just_sent_to_all_is_not_sent_again_to_who_goes_alone() -> None:
    """At its first request alone the device was still listening; afterwards it is not, and what goes to all does not reach it."""
    state = serving()
    state, _ = step(state, Wanted("fast", request(0, 1, alone=False)), 1.0)
    state, _ = step(state, Tick(ROOM), 1.05)
    state, _ = step(state, Wanted("slow", request(1, 2)), 1.1)
    state, effects = step(state, Tick(ROOM), 1.1)
    assert sent(effects) == [("slow", 2)]
    assert state.counts.crossed == 1
    state, _ = step(state, Wanted("fast", request(3, alone=False)), 2.0)
    state, _ = step(state, Tick(ROOM), 2.05)
    state, _ = step(state, Wanted("slow", request(3)), 2.1)
    assert sent(step(state, Tick(ROOM), 2.1)[1]) == [("slow", 3)]


def test_a_devices_rate_spaces_its_blocks_over_all_its_files_and_nobody_elses() -> None:
    """At two blocks per second, eight blocks of two files take four seconds, while another device gets its own at its rate."""
    state = serving(device_rate=2.0 * BLOCK_COST)
    for device in ("a", "b"):
        for sha256 in FILES[:2]:
            state, _ = step(state, Wanted(device, request(0, 1, 2, 3, sha256=sha256)), 0.0)
    log: list[tuple[float, str]] = []
    now = 0.0
    while (due := wake_at(state)) is not None:
        assert due >= now
        now = max(now, due)
        state, effects = step(state, Tick(ROOM), now)
        log += [(now, device) for device, _ in sent(effects)]
    for device in ("a", "b"):
        assert [when for when, name in log if name == device] == pytest.approx([0.5 * n for n in range(8)], abs=0.01)


def test_devices_rate_leaves_what_goes_to_all_alone() -> None:
    """The limit of a device that is served alone does not slow down the multicast."""
    state = serving(device_rate=1.0 * BLOCK_COST)
    state, _ = step(state, Wanted("a", request(0, 1)), 0.0)
    state, _ = step(state, Wanted("b", request(*range(8), alone=False)), 0.0)
    state, effects = step(state, Tick(ROOM), 0.05)
    assert sorted(sent(effects)) == [("", index) for index in range(8)] + [("a", 0)]


def test_everybodys_rate_is_shared_between_lanes() -> None:
    """Under the common limit a device that is served alone and the multicast take turns."""
    state = serving(rate=10.0 * BLOCK_COST)
    state, _ = step(state, Wanted("a", request(*range(40))), 0.0)
    state, _ = step(state, Wanted("b", request(*range(40), alone=False)), 0.0)
    now, log = 0.0, []
    while (due := wake_at(state)) is not None and len(log) < 40:
        now = max(now, due)
        state, effects = step(state, Tick(ROOM), now)
        log += [device for device, _ in sent(effects)]
    assert abs(log.count("a") - log.count("")) <= 3
    assert 3.0 < now < 4.5


def test_one_device_has_few_lanes_and_many_devices_have_theirs() -> None:
    """A device that asks alone for more files than it can fetch at once is refused; a thousand others are not."""
    state = serving()
    refused = []
    for sha256 in FILES:
        state, effects = step(state, Wanted("greedy", request(0, sha256=sha256)), 0.0)
        refused += [effect for effect in effects if isinstance(effect, Refuse)]
    assert len(refused) == len(FILES) - ALONE_EACH
    for number in range(1000):
        state, effects = step(state, Wanted(f"d{number}", request(0)), 0.0)
        assert effects == ()
    state, effects = step(state, Tick(ROOM * 10), 0.0)
    assert len(sent(effects)) == 1000 + ALONE_EACH
    state, _ = step(state, Tick(ROOM), 1.0)
    assert state.lanes == {}
