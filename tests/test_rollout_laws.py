"""What holds of the rollout machine whatever happens, in which order and how often; every line of its table; its speed."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import FleetError
from edgefl.rollout_rules import Rules, Stage, parse_stages
from edgefl.server.rollout import MOVES, step
from edgefl.server.rollout_events import DevicesChanged, Event, Heard, Moved, Ordered, Reported, Tick, Told
from edgefl.server.rollout_state import FAILURES, RANK, Rollout, capacity, count
from rolloutmachine import THERE, Fleet

NAMES = [f"d{i}" for i in range(12)]
REPORTS = st.builds(Reported, st.sampled_from(NAMES), st.sampled_from([s for s in RANK if s not in {"waiting", "timed-out"}]))
MEMBERS = st.sets(st.sampled_from(NAMES), min_size=4).map(lambda names: DevicesChanged(dict.fromkeys(sorted(names), THERE)))
WORDS = st.sampled_from(["pause", "resume", "resume", "promote", "abort", "supersede", "rollback"]).map(Ordered)  # type: ignore[arg-type]  # words
EVENTS = st.one_of(st.lists(REPORTS, max_size=6).map(lambda many: Heard(tuple(many))), st.just(Tick()), MEMBERS, WORDS)
RULES = st.builds(
    Rules,
    stages=st.sampled_from([parse_stages(text) for text in ("1,25%,100%", "100%", "2,5,10%,50%,100%")]),
    success=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    abort=st.sampled_from([0.1, 0.5, 1.0]),
    minimum=st.integers(1, 5),
    at_limit=st.sampled_from(["pause", "abort"]),
    approve=st.booleans(),
    timeout=st.sampled_from([0.0, 3.0]),
)


@settings(max_examples=150, deadline=None)
@given(rules=RULES, events=st.lists(EVENTS, max_size=30))
def test_invariants_hold_whatever_happens(rules: Rules, events: list[Event]) -> None:
    """Never more are told than the stage allows; only moves of the table; finished if and only if the last gate was passed."""
    state, _ = step(Rollout(1, rules), DevicesChanged(dict.fromkeys(NAMES, THERE)), 0.0)
    for now, event in enumerate(events, start=1):
        before = state
        try:
            state, effects = step(state, event, float(now))
        except FleetError:
            assert isinstance(event, Ordered)
            continue
        for effect in effects:
            if isinstance(effect, Moved):
                assert MOVES[effect.before, effect.cause] == effect.after
                if effect.cause == "last gate passed":
                    assert count(state).gate_passed
        counted = count(state)
        if any(isinstance(effect, Told) for effect in effects):
            assert counted.told <= counted.capacity
        if state.phase == "running":
            assert not counted.gate_passed
            assert not counted.too_many_failed(rules)
            assert counted.told >= counted.capacity
        if before.phase not in {"running", "waiting"} and not isinstance(event, Ordered):
            assert not any(isinstance(effect, Told) for effect in effects)
            assert state.phase == before.phase
        assert state.stage >= before.stage


@settings(max_examples=100, deadline=None)
@given(
    outcomes=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["activated", "failed", "reverted", "fetching"])),
    data=st.data(),
)
def test_order_and_repetition_of_reports_do_not_matter(outcomes: dict[str, str], data: st.DataObject) -> None:
    """The same reports in another order, some twice or together, leave each device where it was left before."""
    reports = [Reported(name, "fetching") for name in outcomes] + [Reported(name, end) for name, end in outcomes.items()]  # type: ignore[arg-type]  # steps

    def played(order: list[Reported]) -> dict[str, str]:
        fleet = Fleet(dict.fromkeys(NAMES, THERE), stages=(Stage(share=1.0),))
        fleet.happen(Heard(tuple(order[: len(order) // 2])))
        for report in order[len(order) // 2 :]:
            fleet.happen(Heard((report,)))
        return {name: "failed" if device.step in FAILURES else device.step for name, device in fleet.state.devices.items()}

    again = data.draw(st.permutations(reports + data.draw(st.lists(st.sampled_from(reports), max_size=5)) if reports else []))
    assert played(reports) == played(list(again))


def test_every_move_of_the_table_happens() -> None:
    """No line of the table is dead: each is reached by some course of events."""
    quick = {"stages": (Stage(share=1.0),)}
    slow: dict[str, object] = {"stages": (Stage(devices=4), Stage(share=1.0))}
    seen: set[tuple[str, str]] = set()

    def play(fleet: Fleet, *course: object) -> None:
        for act in course:
            if isinstance(act, str) and act in RANK:
                fleet.hear(fleet.at("told"), act)
            elif isinstance(act, str):
                fleet.order(act)
            elif isinstance(act, DevicesChanged):
                fleet.happen(act)
        seen.update((e.before, e.cause) for e in fleet.effects if isinstance(e, Moved))

    more = DevicesChanged({f"d{i:04}": THERE for i in range(40)})
    for ending in ("abort", "supersede", "rollback"):
        play(Fleet(8), ending)
        play(Fleet(8), "pause", ending)
        play(Fleet(8, approve=True), "activated", ending)
    play(Fleet(8), "activated", "promote", "promote")
    play(Fleet(8), "pause", "resume", "failed")
    play(Fleet(8, **slow), "failed")
    play(Fleet(8, **quick), "activated", "rollback")
    play(Fleet(8, **quick), "promote", "rollback")
    play(Fleet(8, approve=True), "activated", "promote")
    play(Fleet(8, approve=True), "activated", "pause")
    play(Fleet(8, **quick, minimum=100), "failed")
    play(Fleet(8, stages=parse_stages("25%,100%"), approve=True), "activated", more)
    for limit in ("pause", "abort"):
        play(Fleet(8, **slow, at_limit=limit, success=0.1), "failed")
        for worst in (1.0, 0.25):
            fleet = Fleet(8, **slow, approve=True, at_limit=limit, abort=worst, success=0.5)
            play(fleet, "activated")
            fleet.hear(fleet.at("activated")[:3], "reverted")
            play(fleet)
    assert seen == set(MOVES)


def test_a_step_with_two_thousand_devices_is_quick() -> None:
    """A report, a batch of 2,000 and a change of 2,000 members each take a fraction of the half second between two looks."""
    fleet = Fleet(2000, stages=(Stage(devices=1000), Stage(share=1.0)))
    events: list[Event] = [
        Heard((Reported("d0001", "fetching", percent=3),)),
        Heard(tuple(Reported(name, "fetching", percent=50) for name in fleet.members)),
        DevicesChanged(fleet.members),
        Ordered("promote"),
    ]
    for event in events:
        best = min(_seconds(fleet.state, event) for _ in range(3))
        assert best < 0.05, event
    assert capacity(fleet.state, 1, 2000) == 2000


def _seconds(state: Rollout, event: Event) -> float:
    began = time.thread_time()  # what others do on this machine does not count
    step(state, event, 5.0)
    return time.thread_time() - began
