"""The download machine: what it asks for, when it asks again, and that nothing bad gets in."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.device.download import begin, step, wake_at
from edgefl.device.download_events import Ask, BlockArrived, Complete, Effect, Reconnected, Reject, Store, Tick
from edgefl.device.download_state import LARGEST_WINDOW, Download
from edgefl.wire.blocks import block_length, file_ref, wanted
from edgefl.wire.files import BLOCK_SIZE, Block, FileRef

CONTENT = random.Random(7).randbytes(40 * BLOCK_SIZE + 123)
REF = file_ref("weights", CONTENT)
COUNT = len(REF.blocks)


def block(index: int, ref: FileRef = REF, content: bytes = CONTENT) -> Block:
    """A good block."""
    return Block(ref.sha256[:16], index, content[index * BLOCK_SIZE :][: block_length(ref, index)])


def asked(effects: tuple[Effect, ...]) -> list[int]:
    """Block indices that these effects ask for."""
    return [index for effect in effects if isinstance(effect, Ask) for index in wanted(effect.want)]


def run(state: Download, effects: tuple[Effect, ...], latency: float, *, seed: int = 0, loss: float = 0.0) -> list[int]:
    """Answer requests one by one after `latency` seconds each, with losses, until complete; the indices stored, in order."""
    rng = random.Random(seed)
    now, stored, queue = 0.0, [], list(asked(effects))
    for _ in range(5_000):
        if state.complete:
            return stored
        if queue:
            now += latency
            index = queue.pop(0)
            if rng.random() >= loss:
                state, effects = step(state, BlockArrived(block(index)), now)
                stored += [effect.index for effect in effects if isinstance(effect, Store)]
                queue += asked(effects)
            due = wake_at(state)
            if due is None or due > now:
                continue
        else:
            now = max(now, wake_at(state) or 0.0)
        state, effects = step(state, Tick(rng.random()), now)
        queue += asked(effects)
    pytest.fail("not complete")


def test_clean_download_asks_for_each_block_once() -> None:
    """Without loss every block is asked for and stored once, in order, and the window opens to its limit."""
    state, effects = begin(REF, 0, 0.0)
    assert asked(effects) == [0, 1]
    requests = asked(effects)
    now, windows, queue = 0.0, [], list(requests)
    while queue:
        now += 0.01
        state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
        requests += asked(effects)
        queue += asked(effects)
        windows.append(state.window)
        assert len(state.asked) <= LARGEST_WINDOW
    assert requests == list(range(COUNT))
    assert effects[-1] == Complete()
    assert state.complete
    assert state.percent == 100
    assert max(windows) == LARGEST_WINDOW
    assert (state.counts.stored, state.counts.stalls, state.counts.unasked) == (COUNT, 0, 0)
    assert wake_at(state) is None


def test_resume_asks_only_for_what_is_missing() -> None:
    """With blocks on disk, only the others are asked for; with all of them the download is complete at once."""
    have = sum(1 << index for index in range(COUNT) if index % 3)
    assert run(*begin(REF, have, 0.0), latency=0.01) == [index for index in range(COUNT) if index % 3 == 0]
    state, effects = begin(REF, (1 << COUNT) - 1, 0.0)
    assert effects == (Complete(),)
    assert step(state, Tick(0.5), 1e9) == (state, ())


def test_bad_and_strange_blocks_change_nothing() -> None:
    """Duplicates, other files' blocks, damaged, mislabelled and impossible blocks are counted, never stored."""
    state, _ = begin(REF, 0, 0.0)
    state, effects = step(state, BlockArrived(block(0)), 0.1)
    assert isinstance(effects[0], Store)
    good = block(1)
    flipped = Block(good.file, 1, bytes([good.data[0] ^ 1]) + good.data[1:])
    cases = [
        (block(0), "duplicate"),
        (Block(b"x" * 16, 1, good.data), "foreign"),
        (flipped, "damaged"),
        (Block(good.file, 1, good.data[:-1]), "damaged"),
        (Block(good.file, 2, good.data), "damaged"),
        (Block(good.file, COUNT, good.data), "damaged"),
    ]
    for strange, counter in cases:
        after, effects = step(state, BlockArrived(strange), 0.2)
        assert after.have == state.have
        assert after.asked == state.asked
        assert getattr(after.counts, counter) == getattr(state.counts, counter) + 1
        assert [type(effect) for effect in effects] == ([Reject] if counter == "damaged" else [])
        state = after


def test_damaged_block_is_asked_for_again() -> None:
    """A damaged block leaves the request standing; the stall timer repeats it, and not a flood of bad blocks."""
    state, effects = begin(REF, 0, 0.0)
    bad = Block(REF.sha256[:16], 0, b"junk")
    for moment in range(100):
        state, effects = step(state, BlockArrived(bad), moment / 100)
        assert asked(effects) == []
    state, effects = step(state, Tick(0.0), 2.0)
    state, effects = step(state, Tick(0.0), 2.0)
    assert 0 in asked(effects)


def test_multicast_blocks_of_others_are_welcome() -> None:
    """Blocks that others have asked for are stored, and not asked for afterwards."""
    state, _ = begin(REF, 0, 0.0)
    for index in range(5, COUNT):
        state, effects = step(state, BlockArrived(block(index)), 0.1)
        assert isinstance(effects[0], Store)
    requests: list[int] = []
    for index in range(5):
        state, effects = step(state, BlockArrived(block(index)), 0.2)
        requests += asked(effects)
    assert state.complete
    assert set(requests) <= {2, 3, 4}
    assert state.counts.unasked >= COUNT - 5


def test_lost_block_is_asked_again_at_once_while_others_flow() -> None:
    """A request that is overdue while other blocks arrive is repeated without a pause, and the window halves."""
    state, effects = begin(REF, 0, 0.0)
    now, queue = 0.0, asked(effects)
    while now < 2.0:
        now += 0.1
        index = queue.pop(0)
        if index != 3:
            state, effects = step(state, BlockArrived(block(index)), now)
            queue += asked(effects)
    window = state.window
    due = wake_at(state)
    assert due is not None
    state, effects = step(state, Tick(0.99), due)
    assert asked(effects) == [3]
    assert state.window == window / 2
    assert state.resume_at is None


def test_silence_is_answered_with_growing_random_pauses() -> None:
    """When nothing arrives, the limit of the pause doubles from 2 to 300 s; jitter 0 asks at once; a block ends it."""
    state, _ = begin(REF, 0, 0.0)
    state = replace(state, late_at=math.inf)
    now, pauses = 0.0, []
    for _ in range(12):
        now = wake_at(state) or 0.0
        state, effects = step(state, Tick(0.999999), now)
        assert effects == ()
        assert state.window >= 1.0
        resume = wake_at(state)
        assert resume is not None
        pauses.append(resume - now)
        assert step(state, Tick(0.5), resume - 0.001)[1] == ()
        state, effects = step(state, Tick(0.5), resume)
        assert asked(effects)[:1] == [0]
        now = resume
    assert pauses == pytest.approx([min(300.0, 2.0 * 2**n) for n in range(12)], rel=1e-3)
    state, _ = step(state, Tick(0.999999), (wake_at(state) or 0.0))
    assert state.resume_at is not None
    state, effects = step(state, BlockArrived(block(9)), now + 3.0)
    assert state.resume_at is None
    assert state.silences == 0
    assert asked(effects) == [0]


def test_reconnection_asks_at_once() -> None:
    """After a reconnection what was outstanding is asked for again without waiting for a timer."""
    state, _ = begin(REF, 0, 0.0)
    state, _ = step(state, Tick(0.9), 2.0)
    state, effects = step(state, Reconnected(), 2.1)
    assert asked(effects)[0] == 0
    assert state.silences == 0


def test_slow_link_is_learnt() -> None:
    """On a link of 5 s per block the patience grows beyond the answer time, and repetitions stay few."""
    state, effects = begin(REF, 0, 0.0)
    now, queue, answered = 0.0, asked(effects), 0
    while not state.complete:
        now += 5.0
        while (wake_at(state) or now) < now:
            state, effects = step(state, Tick(0.5), wake_at(state) or now)
            queue += asked(effects)
        answered += 1
        state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
        queue += asked(effects)
    assert state.patience > 20.0
    assert answered < COUNT * 1.3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), loss=st.floats(0.0, 0.5), have=st.integers(0, (1 << COUNT) - 1))
def test_completes_under_loss_and_stores_each_block_once(seed: int, loss: float, have: int) -> None:
    """Whatever is lost, the download completes, and every missing block is stored exactly once."""
    stored = run(*begin(REF, have, 0.0), latency=0.02, seed=seed, loss=loss)
    assert sorted(stored) == [index for index in range(COUNT) if not have >> index & 1]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sequence_of_events_keeps_the_invariants(data: st.DataObject) -> None:
    """In any order of events: asked blocks are missing ones, at most a window of them; what is had stays; Complete comes once."""
    state, effects = begin(REF, 0, 0.0)
    now, completions = 0.0, 0
    for _ in range(data.draw(st.integers(1, 80))):
        now += data.draw(st.sampled_from([0.0, 0.01, 1.0, 2.5, 400.0]))
        index = data.draw(st.integers(0, COUNT - 1))
        choice = data.draw(st.integers(0, 3))
        event = [BlockArrived(block(index)), Tick(0.5), Reconnected(), BlockArrived(Block(REF.sha256[:16], index, b"bad"))][
            choice
        ]
        before = state.have
        state, effects = step(state, event, now)
        completions += effects.count(Complete())
        assert state.have & before == before
        assert len(state.asked) <= LARGEST_WINDOW
        assert not any(state.have >> index & 1 for index in state.asked)
        assert state.complete or wake_at(state) is not None
        assert set(asked(effects)) <= set(state.asked)
    assert completions <= 1


def test_request_reaches_no_further_than_its_bitmap() -> None:
    """With holes far apart, a request covers those near the first one, and the others are asked for later."""
    far = FileRef("weights", bytes(32), 5000 * BLOCK_SIZE, (bytes(16),) * 5000)
    have = ((1 << 5000) - 1) & ~(1 << 3) & ~(1 << 4000)
    state, effects = begin(far, have, 0.0)
    assert asked(effects) == [3]
    assert set(state.asked) == {3}
