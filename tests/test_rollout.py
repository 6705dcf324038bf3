"""The rollout machine: who is told when, what opens a stage, what stops it."""

from dataclasses import replace

import pytest

from edgefl.errors import FleetError
from edgefl.rollout_rules import Rules, Stage
from edgefl.server.rollout import step
from edgefl.server.rollout_events import DevicesChanged, Heard, Member, Ordered, Reported, Tick, Told
from edgefl.server.rollout_state import OPEN, Rollout, count
from rolloutmachine import THERE, Fleet


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
