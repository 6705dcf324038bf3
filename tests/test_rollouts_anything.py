"""Rollouts when anything happens in any order: what always holds."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

import toyfleet as toy
from edgefl.errors import FleetError
from edgefl.rollout_rules import Rules, parse_stages
from edgefl.server.rollout_status import rollout_statuses
from edgefl.server.rollouts import Rollouts
from edgefl.server.wanted import wanted
from edgefl.store.database import transaction
from edgefl.store.rollouts import failures, get_rollout
from edgefl.store.tags import all_tags, tag, untag
from edgefl.wire.presence import Report
from toyrollouts import NAMES, back, push, say, start

ACTS = st.one_of(
    st.tuples(
        st.just("start"), st.integers(1, 4), st.sampled_from(["", "lab"]), st.sampled_from(["1,100%", "100%", "1,50%,100%"])
    ),
    st.tuples(st.just("order"), st.sampled_from(["pause", "resume", "promote", "abort"])),
    st.tuples(st.just("rollback")),
    st.tuples(st.just("push")),
    st.tuples(
        st.just("report"), st.sampled_from(["activated", "activated", "failed", "reverted", "fetching"]), st.integers(1, 5)
    ),
    st.tuples(st.just("tag"), st.integers(0, 5)),
    st.tuples(st.just("revoke"), st.integers(0, 5)),
    st.tuples(st.just("later"), st.sampled_from([1.0, 100.0])),
    st.tuples(st.just("restart")),
)


class Player:
    """A small fleet in which anything may happen in any order."""

    def __init__(self, root):
        self.fleet = toy.ToyFleet(root)
        self.fleet.provision(**{name: "small" if name == "d05" else "big" for name in NAMES[:6]})
        push(self.fleet)
        for profiles in (("big",), (), ("big", "small")):
            self.fleet.push(*profiles, seed=len(profiles))
        self.rollouts = Rollouts(self.fleet.database, self.fleet.clock.wall)

    def play(self, act, *more):
        """Do it, or be told why it cannot be done."""
        with suppress(FleetError):
            getattr(self, act)(*more)
        self.fleet.clock.now += 6.0
        self.rollouts.look()

    def start(self, version, tagged, stages):
        """Start a rollout."""
        rules = Rules(stages=parse_stages(stages), timeout=50.0, approve=version == 3)
        start(self.fleet, version, rules, **({"tags": [tagged]} if tagged else {}))

    def order(self, word):
        """An operator's order."""
        say(self.fleet, word)

    def rollback(self):
        """An operator's rollback."""
        back(self.fleet)

    def push(self):
        """A version that is the release at once."""
        push(self.fleet)

    def report(self, step, count):
        """The first devices report on what they are to hold."""
        for device, models in list(wanted(self.fleet.database).items())[:count]:
            for one in models:
                self.rollouts.report(device, Report(one.model, one.version, 0, step))

    def tag(self, number):
        """A device comes into the group, or leaves it."""
        with transaction(self.fleet.database):
            (untag if NAMES[number] in all_tags(self.fleet.database) else tag)(self.fleet.database, NAMES[number], ["lab"])

    def revoke(self, number):
        """A device leaves the fleet, or comes back."""
        with self.fleet.database as database:
            database.execute("UPDATE devices SET revoked=CASE WHEN revoked IS NULL THEN 1 END WHERE id=?", (NAMES[number],))

    def later(self, seconds):
        """Time passes."""
        self.fleet.clock.now += seconds

    def restart(self):
        """The server is another process."""
        self.rollouts = Rollouts(self.fleet.database, self.fleet.clock.wall)


@settings(max_examples=25, deadline=None)
@given(acts=st.lists(ACTS, max_size=25))
def test_every_device_always_has_a_version_that_it_can_hold(acts):
    """Whatever is ordered, pushed, tagged, revoked, reported and restarted, the rows stay sound and nobody is told too much."""
    with TemporaryDirectory() as root:
        player = Player(Path(root))
        database = player.fleet.database
        for act in acts:
            player.play(*act)
            states = rollout_statuses(database, ended=True)
            assert sum(one.is_open for one in states) <= 1
            valid = [name for (name,) in player.fleet.rows("SELECT id FROM devices WHERE revoked IS NULL ORDER BY id")]
            held = wanted(database)
            assert list(held) == valid
            assert wanted(database) == held
            for name, models in held.items():
                assert models or any(device == name for device, _, _ in failures(database))
                for one in models:
                    made = "SELECT 1 FROM variants WHERE version=? AND profile=?"
                    assert player.fleet.rows(made, one.version, player.fleet.profiles[name])
                    said = get_rollout(database, one.rollout) if one.rollout else None
                    assert said is None or said.version == one.version
                    assert said is None or name not in said.state.devices or not said.state.devices[name].failed
            for one in states:
                if one.is_open:
                    told = {name for name, models in held.items() if any(m.rollout == one.id for m in models)}
                    state = get_rollout(database, one.id).state
                    assert told <= {name for name, device in state.devices.items() if device.step != "waiting"}
        player.rollouts._database.close()
