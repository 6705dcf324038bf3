"""The download machine on slow links: when it goes alone and when not, how much is under way, and when it gives up."""

import math
import random
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_block

from edgefl.device.download import GRACE, SLOWEST, begin, step, wake_at
from edgefl.device.download_events import Ask, BlockArrived, Effect, GoAlone, Reconnected, Store, Tick, TooSlow
from edgefl.device.download_state import Download
from edgefl.wire.blocks import block_length, file_ref, wanted
from edgefl.wire.files import BLOCK_SIZE, Block

CONTENT = random.Random(5).randbytes(40 * BLOCK_SIZE)
REF = file_ref("weights", CONTENT)
COUNT = len(REF.blocks)


def block(index: int) -> Block:
    """A good block."""
    return Block(REF.sha256[:16], index, CONTENT[index * BLOCK_SIZE :][: block_length(REF, index)])


def asked(effects: tuple[Effect, ...]) -> list[int]:
    """Block indices that these effects ask for."""
    return [index for effect in effects if isinstance(effect, Ask) for index in wanted(effect.want)]


def flood(indices: list[int], gap: float, state: Download | None = None) -> tuple[Download, list[Effect], float]:
    """Blocks that others have asked for arrive, one every `gap` seconds, until the device goes alone."""
    now = 0.0
    state = state or begin(REF, 0, 0.0)[0]
    for index in indices:
        now += gap
        state, effects = step(state, BlockArrived(block(index)), now)
        if state.alone:
            return state, list(effects), now
    return state, [], now


def test_a_drowned_download_goes_alone() -> None:
    """At 16 KB/s, after a few blocks that are here already, it leaves the topic and asks for one block, alone."""
    state, effects, now = flood([20] * 20, 2.0)
    assert state.alone
    assert now <= 12.0
    going = [type(effect) for effect in effects if not isinstance(effect, Store)]
    assert going == [GoAlone, Ask]
    request = next(effect.want for effect in effects if isinstance(effect, Ask))
    assert request.alone
    assert asked(tuple(effects)) == [0]


def test_a_slow_link_listens_while_others_ask_for_what_it_misses() -> None:
    """Thirty missing blocks come that others have asked for: it asks for nothing meanwhile, and for the rest when they end."""
    state, effects = begin(REF, 0, 0.0)
    requests, now = [], 0.0
    for index in range(10, 40):
        now += 2.0
        state, effects = step(state, BlockArrived(block(index)), now)
        requests += asked(effects) if index > 11 else []
        while (wake_at(state) or now + 9.0) <= now + 1.9:
            state, effects = step(state, Tick(0.0), wake_at(state) or now)
            requests += asked(effects) if index > 11 else []
    assert requests == []
    assert not state.alone
    now = wake_at(state) or 0.0
    assert now <= 70.0
    state, effects = step(state, Tick(0.0), now)
    state, more = step(state, Tick(0.0), now)
    assert asked(effects) + asked(more)


def test_asking_begins_somewhere_and_goes_round() -> None:
    """From a drawn block on to the end, and on from the beginning; every block once."""
    state, effects = begin(REF, 0, 0.0, first=33)
    queue, requests, now = asked(effects), list(asked(effects)), 0.0
    while queue:
        now += 0.01
        state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
        queue += asked(effects)
        requests += asked(effects)
    assert requests[:2] == [33, 34]
    assert sorted(requests) == list(range(COUNT))
    assert state.complete


def test_a_slow_link_says_how_far_it_is_behind() -> None:
    """Its requests carry the seconds that a block takes to it, never more than it has listened; those of a fast link nothing."""
    for gap, expected in ((2.0, {2, 4}), (0.01, {0})):
        state, effects = begin(REF, 0, 0.0)
        now, queue, behind = 0.0, asked(effects), set()
        for _ in range(12):
            now += gap
            state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
            queue += asked(effects)
            behind |= {effect.want.behind for effect in effects if isinstance(effect, Ask)}
        assert behind <= set(range(min(expected), max(expected) + 1))
        assert max(behind) >= min(expected)


def stamped(index: int, sent: int) -> Block:
    """A good block that says when it was sent."""
    return replace_block(block(index), sent=sent)


def test_requests_say_what_was_heard_last_until_the_connection_ends() -> None:
    """The last block's stamp, also of a duplicate; nothing after a new connection, before its first block has come."""
    state, effects = begin(REF, 0, 0.0)
    assert [(effect.want.heard, effect.want.fresh) for effect in effects if isinstance(effect, Ask)] == [(0, True)]
    for index, sent in ((0, 700), (5, 650), (5, 710)):
        state, effects = step(state, BlockArrived(stamped(index, sent)), 0.1)
    state, effects = step(state, BlockArrived(stamped(1, 720)), 0.2)
    assert [(effect.want.heard, effect.want.fresh) for effect in effects if isinstance(effect, Ask)] == [(720, False)]
    state, effects = step(state, Reconnected(3.0), 50.0)
    requests = [effect.want for effect in effects if isinstance(effect, Ask)]
    assert [(request.heard, request.behind, request.fresh) for request in requests] == [(0, 0, True)]


def test_a_slow_link_reminds_while_blocks_come_and_begins_afresh_after_silence() -> None:
    """While blocks come it asks again with what it has heard; after two silences nothing is taken to be under way."""
    state, effects = begin(REF, 0, 0.0)
    now, reminders = 0.0, []
    for moment in range(1, 30):
        while (due := wake_at(state) or 0.0) < 2.0 * moment:
            now = max(now, due)
            state, effects = step(state, Tick(0.5), now)
            reminders += [
                (effect.want.heard, *wanted(effect.want)) for effect in effects if isinstance(effect, Ask) and now > 10.0
            ]
        now = 2.0 * moment
        state, _ = step(state, BlockArrived(stamped(sorted(state.asked)[1], 100 + moment)), now)  # all but block 0
    assert {first for _, first, *_ in reminders} == {0}
    assert 3 <= len(reminders) <= 8
    assert all(heard > 100 for heard, *_ in reminders)
    state, window, quiet = replace(state, late_at=math.inf), state.window, []
    while len(quiet) < 4:
        now = wake_at(state) or 0.0
        state, effects = step(state, Tick(0.5), now)
        quiet += [(effect.want.heard, effect.want.behind) for effect in effects if isinstance(effect, Ask)]
    assert quiet[-1] == (0, 0)
    assert quiet[0][0] > 100
    assert state.window <= window


def test_what_comes_twice_because_it_was_asked_for_twice_drowns_nobody() -> None:
    """A block that was repeated may come once more; the same again is somebody else's."""
    state, effects = begin(REF, 0, 0.0)
    state, again = step(state, Reconnected(1.0), 2.0)
    assert asked(effects) == asked(again) == [0, 1]
    for moment, (index, unwanted) in enumerate([(0, 0), (0, 0), (0, 1), (0, 2)], start=6):
        state, _ = step(state, BlockArrived(block(index)), 2.0 * moment)
        assert state.unwanted == unwanted


def test_a_fast_link_is_never_alone() -> None:
    """However many blocks others ask for, at 128 KiB/s and more they are a gift."""
    for gap in (0.0, 0.01, 0.25):
        assert not flood(list(range(2, 40)) + [39] * 100, gap)[0].alone


def test_a_slow_fleet_in_step_stays_together() -> None:
    """On a slow link where what arrives is what was asked for, nobody goes alone: one file for all of them."""
    state, effects = begin(REF, 0, 0.0)
    now, queue = 0.0, asked(effects)
    while not state.complete:
        now += 2.0
        state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
        queue += asked(effects)
        assert not state.alone
    assert state.counts.stored == COUNT


def test_requests_stay_alone_until_the_end() -> None:
    """Every later request, also after a stall and a reconnection, is for this device alone."""
    state, _, now = flood([20] * 20, 2.0)
    requests = []
    for _ in range(400):
        if state.complete:
            break
        pending = sorted(state.asked)
        now += 2.0
        if pending and len(requests) % 7:
            state, effects = step(state, BlockArrived(block(pending[0])), now)
        else:
            now = max(now, wake_at(state) or now)
            state, effects = step(state, Reconnected(1.0) if len(requests) % 14 == 0 else Tick(0.1), now)
        requests += [effect.want.alone for effect in effects if isinstance(effect, Ask)] or [True]
        assert not any(isinstance(effect, GoAlone) for effect in effects)
    assert state.complete
    assert all(requests)


@pytest.mark.parametrize(("seconds", "most"), [(2.0, 2), (4.0, 1), (0.25, 8)])
def test_what_is_under_way_takes_seconds_not_minutes(seconds: float, most: int) -> None:
    """A link of 16 KB/s has two blocks under way, one of 8 KB/s one, a fast one eight: pings come through in between."""
    state, effects = begin(REF, 0, 0.0, alone=True)
    assert isinstance(effects[0], GoAlone)
    now, queue, largest = 0.0, asked(effects), 0
    while not state.complete:
        now += seconds
        largest = max(largest, len(queue))
        state, effects = step(state, BlockArrived(block(queue.pop(0))), now)
        queue += asked(effects)
    assert largest <= most


def test_one_block_a_minute_is_too_slow_and_told_once() -> None:
    """The deadline is ten minutes and what 2 KiB/s allow; then there is one word, with what is missing."""
    state, _ = begin(REF, 0, 0.0)
    limit = GRACE + REF.length / SLOWEST
    now, told, arrived = 0.0, [], 0
    while now < 2.0 * limit:
        due = wake_at(state)
        assert due is not None
        if due < 60.0 * (arrived + 1):
            now = max(now, due)
            state, effects = step(state, Tick(0.5), now)
            told += [(now, effect) for effect in effects if isinstance(effect, TooSlow)]
        else:
            now, arrived = 60.0 * (arrived + 1), arrived + 1
            state, _ = step(state, BlockArrived(block(arrived)), now)
    ((when, word),) = told
    assert when == pytest.approx(limit)
    assert word == TooSlow(COUNT - int(limit / 60.0), pytest.approx(limit))


def test_time_without_a_connection_does_not_count() -> None:
    """A device that was away for a day has as much time left as before."""
    state, _ = begin(REF, 0, 0.0)
    limit = state.late_at
    state, _ = step(state, Reconnected(86400.0), 86500.0)
    assert state.late_at == limit + 86400.0
    state, effects = step(replace(state, resume_at=None), Tick(0.0), 86500.0 + limit - 101.0)
    assert not any(isinstance(effect, TooSlow) for effect in effects)


def test_a_resumed_file_has_time_for_what_is_missing_only() -> None:
    """The deadline counts the blocks that are not there."""
    state, _ = begin(REF, (1 << COUNT) - 2, 0.0)
    assert state.late_at == pytest.approx(GRACE + BLOCK_SIZE / SLOWEST)
