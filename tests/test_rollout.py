"""The rollout machine: who is told when, what opens a stage, what stops it."""

import time
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import ConfigError, FleetError
from edgefl.rollout_rules import Rules, Stage, Target, parse_limit, parse_share, parse_stages
from edgefl.server.rollout import MOVES, step
from edgefl.server.rollout_events import DevicesChanged, Effect, Event, Heard, Member, Moved, Ordered, Reported, Tick, Told
from edgefl.server.rollout_state import FAILURES, OPEN, RANK, Rollout, capacity, count

THERE = Member(present=True, seen=1.0)


class Fleet:
    """A rollout and what has come of it."""

    def __init__(self, members: int | dict[str, Member], **rules: object) -> None:
        self.state = Rollout(1, Rules(**rules))  # type: ignore[arg-type]  # the tests give what belongs
        self.effects: list[Effect] = []
        self.now = 0.0
        self.members = {f"d{i:04}": THERE for i in range(members)} if isinstance(members, int) else members
        self.happen(DevicesChanged(self.members))

    def happen(self, event: Event) -> tuple[Effect, ...]:
        """Let something happen a second later."""
        self.now += 1.0
        self.state, effects = step(self.state, event, self.now)
        self.effects += effects
        return effects

    def order(self, word: str) -> tuple[Effect, ...]:
        """An operator's word."""
        return self.happen(Ordered(word))  # type: ignore[arg-type]  # a word

    def hear(self, names: Iterable[str], step_: str = "activated", **more: object) -> None:
        """Each of these devices reports, one after the other."""
        for name in names:
            self.happen(Heard((Reported(name, step_, **more),)))  # type: ignore[arg-type]  # a step

    def at(self, step_: str) -> list[str]:
        """The devices at a step."""
        return [name for name, device in self.state.devices.items() if device.step == step_]

    @property
    def told(self) -> int:
        """How many were told, set aside or not."""
        return sum(device.step != "waiting" for device in self.state.devices.values())


def test_stages_open_one_after_the_other_until_all_hold_the_version() -> None:
    """By the default rules 1, 10, 50 and 200 of 200 devices are told; the rollout finishes when 90 % of all hold the version."""
    fleet = Fleet(200)
    sizes = []
    while fleet.state.phase == "running":
        sizes.append(fleet.told)
        fleet.hear(fleet.at("told"))
    assert sizes == [1, 10, 50, 200]
    assert fleet.state.phase == "finished"
    assert [e.stage for e in fleet.effects if isinstance(e, Told)] == [0, 1, 2, 3]


def test_gate_holds_with_the_share_and_not_with_one_less() -> None:
    """45 of 50 devices are 90 %; 44 are not."""
    fleet = Fleet(50, stages=(Stage(share=1.0),))
    fleet.hear(fleet.at("told")[:44])
    assert fleet.state.phase == "running"
    fleet.hear(fleet.at("told")[:1])
    assert fleet.state.phase == "finished"


def test_shares_are_rounded_as_people_count() -> None:
    """A share of a number of devices that is whole is not rounded up for the sake of a last bit; any other is."""
    assert [Stage(share=0.07).size(n) for n in (100, 101, 14, 1, 0)] == [7, 8, 1, 1, 0]
    assert Stage(devices=5).size(3) == 3


def test_canary_with_failures_pauses_and_leaves_the_rest_untouched() -> None:
    """When 30 % of a stage fail the rollout pauses, tells nobody else whatever happens, and says why in words."""
    fleet = Fleet(100, stages=(Stage(devices=10), Stage(share=1.0)))
    canary = fleet.at("told")
    fleet.happen(Heard(tuple(Reported(name, "failed", code="trial", error="accuracy fell") for name in canary[:3])))
    assert fleet.state.phase == "paused"
    assert "trial 3" in fleet.state.reason
    fleet.hear(canary[3:])
    fleet.happen(Tick())
    fleet.happen(DevicesChanged({**fleet.members, "new": THERE}))
    assert (fleet.state.phase, fleet.told) == ("paused", 10)


def test_limit_waits_for_enough_devices() -> None:
    """One failure of two says nothing yet; with the third device done it is too many."""
    fleet = Fleet(40, stages=(Stage(devices=20), Stage(share=1.0)), success=0.5)
    told = fleet.at("told")
    fleet.hear(told[:1], "failed")
    fleet.hear(told[1:2])
    assert fleet.state.phase == "running"
    fleet.hear(told[2:3])
    assert fleet.state.phase == "paused"


def test_canary_that_fails_alone_pauses_too() -> None:
    """A gate that can no longer be passed stops the rollout although too few devices are done for the limit."""
    fleet = Fleet(30)
    fleet.hear(fleet.at("told"), "reverted", code="trial")
    assert fleet.state.phase == "paused"
    assert "must succeed" in fleet.state.reason


def test_limit_may_abort() -> None:
    """With `at_limit` abort the rollout is over at the limit."""
    fleet = Fleet(30, stages=(Stage(devices=10), Stage(share=1.0)), at_limit="abort", success=0.1)
    fleet.hear(fleet.at("told")[:3], "failed")
    assert fleet.state.phase == "aborted"


def test_resume_sets_failures_aside_and_asks_others() -> None:
    """After a failed canary, resuming tells another one; those that failed are no longer counted."""
    fleet = Fleet(30)
    (first,) = fleet.at("told")
    fleet.hear([first], "failed")
    fleet.order("resume")
    assert fleet.state.phase == "running"
    (second,) = fleet.at("told")
    assert second != first
    fleet.hear([second])
    assert fleet.state.stage == 1
    assert count(fleet.state).members == 29


def test_resume_after_an_operators_pause_forgives_nothing() -> None:
    """Failures below the limit still count after a pause that an operator asked for."""
    fleet = Fleet(40, stages=(Stage(share=1.0),))
    fleet.hear(fleet.at("told")[:20])
    fleet.hear(fleet.at("told")[:1], "failed")
    fleet.order("pause")
    fleet.order("resume")
    assert (count(fleet.state).failed, fleet.state.phase) == (1, "running")


def test_paused_rollout_tells_nobody_and_goes_on_after_resume() -> None:
    """What passes a gate during a pause opens the next stage when the rollout is resumed."""
    fleet = Fleet(40)
    fleet.order("pause")
    fleet.hear(fleet.at("told"))
    assert fleet.told == 1
    fleet.order("resume")
    assert (fleet.state.stage, fleet.told) == (1, 2)


def test_approval_is_asked_before_each_next_stage() -> None:
    """With `approve` each passed gate waits for an operator, except the last, which finishes the rollout."""
    fleet = Fleet(100, approve=True)
    seen = []
    while fleet.state.phase in OPEN:
        fleet.hear(fleet.at("told"))
        seen.append((fleet.state.phase, fleet.told))
        if fleet.state.phase == "waiting":
            fleet.order("promote")
    assert seen == [("waiting", 1), ("waiting", 5), ("waiting", 25), ("finished", 100)]


def test_promote_skips_the_gate() -> None:
    """An operator may open the next stage at any time, and end the last one."""
    fleet = Fleet(100)
    for told in (1, 5, 25, 100):
        assert fleet.told == told
        fleet.order("promote")
    assert fleet.state.phase == "finished"


def test_stage_that_tells_nobody_more_is_passed_over() -> None:
    """In a fleet of three devices 5 % and 25 % are the canary again: nobody is asked to approve nothing."""
    fleet = Fleet(3, approve=True)
    fleet.hear(fleet.at("told"))
    fleet.order("promote")
    assert (fleet.told, fleet.state.is_last_stage) == (3, True)


def test_those_that_are_there_are_told_first() -> None:
    """A canary that is switched off teaches nothing: of 20 devices the one that is there is told first."""
    members = {f"d{i}": Member(present=i == 13) for i in range(20)}
    assert Fleet(members).at("told") == ["d13"]


def test_newcomer_joins_when_there_is_room() -> None:
    """A device that comes while a stage is open is told if the stage has room for it, and otherwise waits for its turn."""
    fleet = Fleet(10, stages=(Stage(devices=2), Stage(share=1.0)))
    fleet.members |= {f"n{i}": THERE for i in range(5)}
    fleet.happen(DevicesChanged(fleet.members))
    assert fleet.told == 2
    fleet.hear(fleet.at("told"))
    assert fleet.told == 15
    fleet.happen(DevicesChanged({**fleet.members, "late": Member()}))
    assert fleet.told == 16


def test_device_that_leaves_is_counted_no_more() -> None:
    """When a canary is revoked another is told in its place."""
    fleet = Fleet(10)
    (canary,) = fleet.at("told")
    del fleet.members[canary]
    fleet.happen(DevicesChanged(fleet.members))
    assert fleet.told == 1
    assert canary not in fleet.state.devices


def test_place_in_the_queue_differs_between_rollouts() -> None:
    """The same devices are not the canaries of every rollout."""
    firsts = set()
    for number in range(20):
        state, _ = step(Rollout(number, Rules()), DevicesChanged({f"d{i}": THERE for i in range(100)}), 1.0)
        firsts |= {name for name, device in state.devices.items() if device.step == "told"}
    assert len(firsts) > 10


def test_timeout_counts_from_when_a_device_was_there() -> None:
    """A device that is told and there fails after the timeout; one that is away does not until it has been there as long."""
    fleet = Fleet({"here": THERE, "away": Member()}, stages=(Stage(share=1.0),), timeout=100.0, success=0.5, minimum=9)
    fleet.now = 200.0
    fleet.happen(Tick())
    assert (fleet.at("timed-out"), fleet.at("told")) == (["here"], ["away"])
    fleet.happen(DevicesChanged({"here": THERE, "away": Member(present=True, seen=fleet.now)}))
    fleet.happen(Tick())
    assert fleet.at("told") == ["away"]
    fleet.now += 100.0
    fleet.happen(Tick())
    assert fleet.at("timed-out") == ["here", "away"]
    assert fleet.state.devices["away"].code == "timed-out"


def test_putting_it_off_is_not_being_slow() -> None:
    """While a device defers the version no timeout counts; it counts anew when the device begins."""
    fleet = Fleet(1, timeout=100.0)
    fleet.hear(["d0000"], "deferred")
    fleet.now = 1000.0
    fleet.happen(Tick())
    fleet.hear(["d0000"], "fetching")
    fleet.happen(Tick())
    assert fleet.at("fetching") == ["d0000"]
    fleet.now = 1200.0
    fleet.happen(Tick())
    assert fleet.at("timed-out") == ["d0000"]


def test_slow_device_that_comes_after_all_has_succeeded() -> None:
    """A device that was counted as too slow and then holds the version is counted as holding it."""
    fleet = Fleet(2, stages=(Stage(share=1.0),), timeout=10.0, minimum=9, success=0.1)
    fleet.now = 50.0
    fleet.state = replace(fleet.state, phase="paused")
    fleet.happen(Tick())
    fleet.hear(["d0000"])
    assert fleet.at("activated") == ["d0000"]


def test_device_that_holds_the_version_needs_no_report() -> None:
    """An inventory that shows the version counts like the report that was lost, before and after the device was told."""
    fleet = Fleet({"a": Member(present=True, holds=True), "b": THERE}, stages=(Stage(share=1.0),))
    assert fleet.at("activated") == ["a"]
    fleet.happen(DevicesChanged({"a": THERE, "b": Member(seen=9.0, holds=True)}))
    assert fleet.state.phase == "finished"


def test_trouble_on_the_way_is_kept_and_is_no_failure() -> None:
    """A device that tells of a trouble goes on; the last code is shown until it holds the version."""
    fleet = Fleet(2)
    (canary,) = fleet.at("told")
    fleet.hear([canary], "fetching", percent=40, fetched=400)
    fleet.hear([canary], "told", code="disk", error="full")
    device = fleet.state.devices[canary]
    assert (device.step, device.percent, device.fetched, device.code) == ("fetching", 40, 400, "disk")
    fleet.hear([canary])
    assert (fleet.state.devices[canary].code, fleet.state.devices[canary].percent) == ("", 100)


def test_devices_that_were_not_told_have_no_say() -> None:
    """What a waiting device or a stranger reports changes nothing."""
    fleet = Fleet(10)
    before = fleet.state
    fleet.hear([*fleet.at("waiting"), "stranger"], "failed")
    assert fleet.state == before


def test_ended_rollout_follows_its_devices_and_tells_nobody() -> None:
    """After the end reports are still noted, and nothing else happens."""
    fleet = Fleet(10, stages=(Stage(share=1.0),))
    fleet.hear(fleet.at("told")[:9])
    assert fleet.state.phase == "finished"
    fleet.hear(fleet.at("told"), "failed")
    assert (fleet.state.phase, len(fleet.at("failed"))) == ("finished", 1)


@pytest.mark.parametrize("word", ["pause", "resume", "promote", "abort", "supersede"])
@pytest.mark.parametrize("phase", ["finished", "aborted", "superseded", "rolled back"])
def test_ended_rollout_takes_no_orders(phase: str, word: str) -> None:
    """Every order to an ended rollout is an error that names its phase."""
    with pytest.raises(FleetError, match=phase):
        step(Rollout(1, Rules(), phase), Ordered(word), 1.0)  # type: ignore[arg-type]  # a phase and a word


def test_empty_rollout_waits_for_devices() -> None:
    """Without a device nothing finishes; the first one that comes is the canary."""
    fleet = Fleet(0)
    assert fleet.state.phase == "running"
    fleet.happen(DevicesChanged({"first": Member()}))
    assert fleet.at("told") == ["first"]


# Any order of events

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


# Rules


def test_default_rules_are_those_that_the_documentation_names() -> None:
    """One canary, 5 %, 25 %, all; 90 % must succeed; 10 % of at least 3 stop it."""
    rules = Rules()
    assert ",".join(map(str, rules.stages)) == "1,5%,25%,100%"
    assert (rules.success, rules.abort, rules.minimum, rules.at_limit, rules.approve) == (0.9, 0.1, 3, "pause", False)


def test_rules_are_read_back_as_they_were_written() -> None:
    """Rules and targets survive their encoding."""
    rules, target = Rules(stages=parse_stages("3,12.5%,100%"), approve=True), Target(tags=("lab",), devices=("a", "b"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rules), type=Rules) == rules
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(target), type=Target) == target


@pytest.mark.parametrize(
    "text", ["", "5%", "0,100%", "1,1,100%", "50%,25%,100%", "x", "-1,100%", "101%", "nan%", "1e3", "²,100%", "9" * 30]
)
def test_impossible_stages_are_named(text: str) -> None:
    """Stages that do not rise to 100 % are an error that shows what was found."""
    with pytest.raises(ConfigError):
        Rules(stages=parse_stages(text))


@pytest.mark.parametrize("text", ["", "10", "0%", "%", "inf%", "x%"])
def test_impossible_shares_are_named(text: str) -> None:
    """A share without its sign, of nothing, or of more than all is an error."""
    with pytest.raises(ConfigError):
        parse_share(text)


def test_limit_is_a_share_and_a_number() -> None:
    """`10%/3` and `10%` are limits; `10%/x` is none."""
    assert parse_limit("10%/5") == (0.1, 5)
    assert parse_limit("20%") == (0.2, 3)
    for text in ("10%/x", "10%/0", "10%/", "3"):
        with pytest.raises(ConfigError):
            parse_limit(text)


def test_target_is_all_of_what_it_names() -> None:
    """Of each kind one is enough, and all kinds must hold; nothing named means everybody."""
    target = Target(tags=("lab", "field"), profiles=("big",))
    assert target.includes("a", "big", ["field"])
    assert not target.includes("a", "small", ["field"])
    assert not target.includes("a", "big", [])
    assert Target().includes("a", "big", [])
    assert (str(target), str(Target())) == ("tag lab, field; profile big", "all devices")


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
