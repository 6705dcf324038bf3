"""The rollout machine: who is told of a version, when the next stage opens, when it stops. Pure; the shell is `server.rollouts`.

Model. Devices wait in a queue whose order is a hash of rollout and device. While a stage is open, as many as it allows are told;
those that are there go before those that are not, because nobody learns from a canary that is switched off. When the share
`success` of them holds the version, the next stage opens; after the last one the rollout is finished. When too many have failed,
it pauses and says why.

`MOVES` is the whole of it: what takes a rollout from one phase to another. `docs/rollouts.md` draws it.

Rules:

* Who has been told stays told while the rollout is open. Newcomers queue like the others and are told when there is room.
* Never are more devices told than the open stage allows.
* An ended rollout still listens, so that its devices can be followed, but it tells nobody any more.
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from edgefl.errors import FleetError
from edgefl.server.rollout_events import (
    Cause,
    DevicesChanged,
    Effect,
    Event,
    Heard,
    Member,
    Moved,
    Ordered,
    Reported,
    Tick,
    Told,
)
from edgefl.server.rollout_state import (
    DONE_AT,
    OPEN,
    RANK,
    Count,
    Device,
    Phase,
    Rollout,
    capacity,
    count,
    next_stage,
    place,
    risen,
)

MOVING: tuple[Phase, ...] = ("running", "waiting")
"""Phases in which the machine moves by itself."""
MOVES: Mapping[tuple[Phase, Cause], Phase] = {
    ("running", "gate passed"): "running",
    ("running", "gate passed, approval asked"): "waiting",
    ("running", "last gate passed"): "finished",
    ("running", "promote"): "running",
    ("running", "promote at the last stage"): "finished",
    ("waiting", "promote"): "running",
    ("waiting", "gate no longer passed"): "running",
    **{(phase, "pause"): "paused" for phase in MOVING},
    **{(phase, "too many failed"): "paused" for phase in MOVING},
    **{(phase, "gate out of reach"): "paused" for phase in MOVING},
    **{(phase, "too many failed, rules say abort"): "aborted" for phase in MOVING},
    ("paused", "resume"): "running",
    **{(phase, "abort"): "aborted" for phase in OPEN},
    **{(phase, "supersede"): "superseded" for phase in OPEN},
    **{(phase, "rollback"): "rolled back" for phase in (*OPEN, "finished")},
}
"""The phase that follows, by the phase before and what happened; what is not in here cannot happen then."""
STOPS: tuple[Cause, ...] = ("too many failed", "too many failed, rules say abort", "gate out of reach")
"""What stops a rollout by itself."""
NEXT_STAGE: tuple[Cause, ...] = ("gate passed", "promote")
"""What opens the next stage."""


Outcome = tuple[Rollout, tuple[Effect, ...]]


def step(state: Rollout, event: Event, now: float) -> Outcome:
    """What follows from an event; `now` in seconds since 1970.

    Raises:
        FleetError: an operator's order that is impossible in this phase; nothing follows.
    """
    match event:
        case DevicesChanged(members):
            return _settle(_joined(state, members, now), now)
        case Heard(reports):
            return _settle(_heard(state, reports, now), now)
        case Tick():
            return _settle(_timed_out(state, now), now)
        case Ordered():
            return _ordered(state, event, now)


def _joined(state: Rollout, members: Mapping[str, Member], now: float) -> Rollout:
    """Take in newcomers, let those go that are no longer meant, and note who is there."""
    if state.phase not in OPEN:
        return state
    devices: dict[str, Device] = {}
    for name, member in members.items():
        device = state.devices.get(name) or Device(changed=now)
        if device.step != "waiting" and device.since is None and (member.present or member.seen > device.changed):
            device = replace(device, since=now)
        if device.step != "waiting" and member.holds and RANK[device.step] < RANK["activated"]:
            device = risen(device, "activated", now)
        devices[name] = device
    present = frozenset(name for name, member in members.items() if member.present)
    holding = frozenset(name for name, member in members.items() if member.holds)
    return replace(state, devices=devices, present=present, holding=holding)


def _heard(state: Rollout, reports: tuple[Reported, ...], now: float) -> Rollout:
    """Note what devices that have been told say; the others do not speak for this rollout."""
    devices = dict(state.devices)
    for said in reports:
        device = devices.get(said.device)
        if device is not None and device.step != "waiting":
            devices[said.device] = _after(device, said, now)
    return replace(state, devices=devices)


def _after(device: Device, said: Reported, now: float) -> Device:
    """The device after a report; the same one if that says nothing new."""
    after = risen(device, said.step, now)
    if after is device and (RANK[device.step] >= DONE_AT or not (said.code or said.error)):
        return device
    waited = device.step == "deferred" and after.step != "deferred"  # what it put off does not count as slow
    after = replace(after, since=now if waited or after.since is None else after.since, changed=now)
    if after.step == said.step and after.step != "activated":
        after = replace(after, percent=said.percent, fetched=max(said.fetched, after.fetched))
    if said.code or said.error:
        return replace(after, code=said.code, error=said.error)
    return replace(after, code="", error="") if after.step == "activated" else after


def _timed_out(state: Rollout, now: float) -> Rollout:
    """Let those fail that have taken too long, but for those that have said that they will do it later."""
    limit = state.rules.timeout
    if not limit or state.phase not in OPEN:
        return state
    late = {
        name: replace(risen(device, "timed-out", now), code="timed-out", error=f"not there {limit:g} s after it was told")
        for name, device in state.devices.items()
        if device.since is not None and now - device.since >= limit and device.step != "deferred" and RANK[device.step] < DONE_AT
    }
    return replace(state, devices={**state.devices, **late}) if late else state


def _ordered(state: Rollout, order: Ordered, now: float) -> Outcome:
    """Do what an operator wants."""
    cause: Cause = "promote at the last stage" if order.word == "promote" and state.is_last_stage else order.word
    if (state.phase, cause) not in MOVES:
        can = sorted({word for phase, word in MOVES if phase == state.phase and " " not in word})
        raise FleetError(
            f"rollout {state.id} is {state.phase}: it cannot {order.word}",
            expected=f"one of {', '.join(can)}" if can else "",
            remedy="See `edgefl rollout status`",
        )
    state, moved = _move(state, cause, order.why or f"{order.word} ordered")
    if order.word == "resume" and _stops(state, count(state)):
        state = _set_aside(state)
    state, effects = _settle(state, now)
    return state, (moved, *effects)


def _set_aside(state: Rollout) -> Rollout:
    return replace(state, devices={n: replace(d, aside=True) if d.failed else d for n, d in state.devices.items()})


def _settle(state: Rollout, now: float) -> Outcome:
    """Tell those that may be told and draw the conclusions, until there are no more."""
    effects: list[Effect] = []
    while state.phase in MOVING:
        state, told = _fill(state, now)
        effects += (told,) if told else ()
        counted = count(state)
        cause = _stops(state, counted) or _goes_on(state, counted)
        if cause is None:
            break
        state, moved = _move(state, cause, _reason(state, cause, counted))
        effects.append(moved)
    return state, tuple(effects)


def _fill(state: Rollout, now: float) -> tuple[Rollout, Told | None]:
    """Tell as many as the open stage has room for."""
    counted = count(state)
    room = counted.capacity - counted.told
    if room <= 0:
        return state, None
    queue = (name for name, device in state.devices.items() if device.step == "waiting")
    chosen = heapq.nsmallest(room, queue, key=lambda name: (name not in state.present, place(state.id, name)))
    told = {name: _told(state, name, now) for name in chosen}
    return replace(state, devices={**state.devices, **told}), Told(state.stage, tuple(chosen))


def _told(state: Rollout, name: str, now: float) -> Device:
    device = Device("told", state.stage, since=now if name in state.present else None, changed=now)
    return risen(device, "activated", now) if name in state.holding else device


def _stops(state: Rollout, counted: Count) -> Cause | None:
    """Why no more devices may be told, if there is reason."""
    if counted.too_many_failed(state.rules):
        return "too many failed, rules say abort" if state.rules.at_limit == "abort" else "too many failed"
    return "gate out of reach" if counted.gate_lost else None


def _goes_on(state: Rollout, counted: Count) -> Cause | None:
    """What the gate says of the open stage, if it is news."""
    if state.phase == "waiting":
        return None if counted.gate_passed else "gate no longer passed"
    if not counted.gate_passed:
        return None
    if capacity(state, len(state.rules.stages) - 1, counted.members) == counted.capacity:
        return "last gate passed"
    return "gate passed, approval asked" if state.rules.approve else "gate passed"


def _move(state: Rollout, cause: Cause, reason: str) -> tuple[Rollout, Moved]:
    after = MOVES[state.phase, cause]
    moved = Moved(state.phase, cause, after, reason)
    stage = next_stage(state, count(state).members) if cause in NEXT_STAGE else state.stage
    if cause == "last gate passed":
        stage = len(state.rules.stages) - 1
    return replace(state, phase=after, stage=stage, reason="" if after == "running" else reason), moved


def _reason(state: Rollout, cause: Cause, counted: Count) -> str:
    """What an operator is told."""
    stage = f"stage {state.stage + 1} ({state.rules.stages[state.stage]})"
    if cause not in STOPS:
        return f"{counted.activated} of {max(counted.capacity, counted.told)} devices hold the version after {stage}"
    codes = Counter(d.code or d.step for d in state.devices.values() if d.failed and not d.aside)
    why = ", ".join(f"{code} {number}" for code, number in codes.most_common(5))
    limit = f"the limit is {100 * state.rules.abort:g} % of at least {state.rules.minimum}"
    rule = f"{counted.needed} must succeed" if cause == "gate out of reach" else limit
    return (
        f"{counted.failed} of {counted.activated + counted.failed} devices that are done have failed in {stage} ({why}); {rule}"
    )
