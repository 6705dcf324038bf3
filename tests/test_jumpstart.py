"""Jump-start: the first round is a race that the best of the first few devices wins, and nothing else changes."""

from dataclasses import replace
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest

import toyfleet as toy
from edgefl.aggregate.best import Best
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import encode
from edgefl.codec.weights import Precision
from edgefl.errors import ConfigError
from edgefl.jumpstart import merit
from edgefl.plan import FleetPruning, JumpStart, Plan
from edgefl.server.rounds import Accept, Refuse, Rounds, aggregated, due, judge, stored
from edgefl.simulate.checks import check
from edgefl.simulate.experiment import Experiment, Shards, Speeds
from edgefl.simulate.schedule import Parts
from edgefl.store.ledger import end_training
from edgefl.wire.tasks import task_of
from toyupdates import VARIANTS, WIDE, reference

PLAN = Plan(rounds=4, cohort=3, quorum=2, jump_start=JumpStart(devices=1, epochs=9), sparsity=0.1, bits=2)


def test_only_the_first_round_is_a_race():
    """Its task is long and its update whole; the second round's is what it is without a jump-start."""
    first = task_of(PLAN, 1)
    assert (first.epochs, first.sparsity, first.bits) == (9, 1.0, 8)
    plain = msgspec.structs.replace(PLAN, jump_start=None)
    assert task_of(PLAN, 2) == task_of(plain, 2)
    assert task_of(plain, 1).epochs == plain.epochs


def test_the_race_ends_with_the_first_few_and_what_is_late_is_refused():
    """Also when rounds count on from an earlier training; updates of other rounds may be late as ever."""
    state = Rounds(PLAN, 8, 11, 0.0)
    assert judge(state, ("a", 8)) == Accept(0)
    state = stored(state, ("a", 8))
    assert due(state, 1.0)
    state = aggregated(state, 1.0)
    assert isinstance(judge(state, ("b", 8)), Refuse)
    assert not due(stored(state, ("b", 9)), 2.0), "the second round waits for its cohort"
    assert judge(replace(state, number=10), ("c", 9)) == Accept(1)


def test_nothing_from_before_counts_in_the_race_or_after_it():
    """What was trained for an earlier training's rounds neither wins nor closes the race, nor counts in the rounds after it."""
    race = Rounds(PLAN, 8, 11, 0.0)
    assert isinstance(judge(race, ("a", 7)), Refuse)
    assert isinstance(judge(replace(race, number=9), ("a", 7)), Refuse)
    plain = Rounds(msgspec.structs.replace(PLAN, jump_start=None), 12, 15, 0.0, raced=8)
    assert [type(judge(plain, ("a", number))) for number in (7, 8, 9)] == [Refuse, Refuse, Accept]


@pytest.mark.parametrize("raced", [False, True])
def test_a_race_that_is_stopped_or_begun_leaves_what_waits_behind(tmp_path, raced):
    """A race takes over no updates of an ordinary training, and an ordinary training none of a race."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="big")
    fleet.push()
    begun = {"jump_start": JumpStart(devices=2, epochs=3)}
    first = fleet.train(rounds=3, **(begun if raced else {}))
    server, a, b = fleet.serve(), fleet.device("a"), fleet.device("b")
    a.send(1)
    server.turns()
    end_training(fleet.database, first, "stopped")
    fleet.train(rounds=3, **({} if raced else begun))
    server.turns()
    assert not server.training.state.buffer
    b.send(1)
    server.turns()
    assert not b.hear().stored
    assert not server.training.state.buffer
    server.kill()
    server = fleet.serve()
    b.send(1)
    server.turns()
    assert not server.training.state.buffer


def test_the_best_is_believed_alone_in_any_order():
    """The least loss wins; coordinates that its variant does not have are covered by nobody."""
    rng = np.random.default_rng(0)
    index = np.arange(6, dtype=np.int64) * 2
    losses = {"a": 0.7, "b": 0.2, "c": 0.9}
    said = {device: rng.standard_normal(6).astype(np.float32) for device in losses}
    for order in ("abc", "cba", "bca"):
        best = Best(12)
        for device in order:
            whole = Sparse(np.arange(6, dtype=np.int64), said[device], 6)
            best.add(whole, index, merit(losses[device]), key="narrow", device=device)
        assert best.updates == 3
        np.testing.assert_array_equal(best.result()[index], said["b"])
        assert best.covered().sum() == 6


@pytest.mark.parametrize("winner", ["a", "b"])
def test_a_server_that_dies_in_the_race_still_finds_the_best(tmp_path, winner):
    """The best update is taken whole, past the server's optimiser, whether it came before the server died or after."""
    losses = {device: 0.25 if device == winner else 0.75 for device in "ab"}
    fleet = toy.fleet_of_four(tmp_path)
    fleet.train(rounds=2, cohort=4, optimizer="momentum", server_rate=0.1, jump_start=JumpStart(devices=2, epochs=3))
    server, (a, b, c, _) = fleet.serve(), [fleet.device(name) for name in "abcd"]
    before = server.training.parent.copy()
    a.hear()
    assert a.orders[-1].task.epochs == 3
    a.send(1, loss=losses["a"])
    server.hear()
    server.kill()
    server = fleet.serve()
    b.send(1, loss=losses["b"])
    server.turns()
    best = reference(before, [(winner, "big", 1)], number=1, rate=1.0)
    np.testing.assert_allclose(server.training.parent, best, atol=1e-5)
    c.send(1)
    server.turns()
    assert not c.hear().stored


def test_what_the_race_would_come_to_is_checked_without_the_servers_rate(tmp_path, monkeypatch):
    """The winner's update is taken as it is: what a small rate would have tamed is refused."""
    monkeypatch.setitem(VARIANTS, "half", ("w1-fp16", WIDE, Precision.FP16))
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", h="half")
    fleet.push("big", "half")
    fleet.train(rounds=2, server_rate=0.01, jump_start=JumpStart(devices=1, epochs=3))
    server, device = fleet.serve(), fleet.device("a")
    vector = np.full(WIDE.size, 7e4, dtype=np.float32)
    device.send(1, data=encode(vector, sparsity=0.1, bits=1, rng=np.random.default_rng(0)).data)
    server.turns()
    assert "too large" in device.hear().reason
    assert server.training.state.number == 1


def test_the_race_takes_its_own_time_in_a_simulation():
    """Devices that train more epochs in the race need as much more simulated time."""
    experiment = Experiment(plan=PLAN, speeds=Speeds(seconds_per_example=0.5))
    parts = Parts(experiment, Mock(slowness=[2.0]), Mock(samples=lambda _: 10), Mock(), Mock())
    race, later = (parts.training_seconds(0, Mock(task=task_of(PLAN, number))) for number in (1, 2))
    assert (race, later) == (9 * 10.0, 10.0)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(jump_start=JumpStart(), aggregator="multi-krum"),
        Plan(rounds=5, pruning=FleetPruning(first=5)),
        Plan(staleness=33, pruning=FleetPruning()),
        Plan(jump_start=JumpStart(), rotated=True),
    ],
)
def test_a_simulation_refuses_what_the_command_refuses(plan):
    """Before any data is read."""
    with pytest.raises(ConfigError):
        check(Experiment(plan=plan))


@pytest.mark.slow
def test_a_fleet_begins_where_the_best_of_its_quickest_devices_has_come():
    """In a simulation only the quickest train in the first round, whole updates go up, and the training goes on from there."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from edgefl.simulate.processes import LocalWorkers
    from edgefl.simulate.run import simulate

    plan = Plan(rounds=4, epochs=1, learning_rate=0.1, sparsity=0.1, optimizer="momentum", server_rate=0.3)
    base = Experiment(width=0.1, devices=10, split=Shards(each=5), plan=plan, speeds=Speeds(), personal=("fc1.bias",), tested=0.3)
    begun = msgspec.structs.replace(
        plan, jump_start=JumpStart(devices=2, epochs=8), pruning=FleetPruning(target=0.6, share=0.5, first=2)
    )
    with LocalWorkers(1) as workers:
        plain = simulate(base, workers=workers)
        jumped = simulate(msgspec.structs.replace(base, plan=begun), workers=workers)
    assert jumped.rows[0].participants == 2
    assert plain.rows[0].participants == 10
    assert jumped.rows[0].accuracy > plain.rows[0].accuracy
    assert jumped.totals.pruned == pytest.approx(0.6, abs=0.01)
    assert jumped.own is not None
    assert jumped.own.mean > 0.5
    assert (jumped.trouble, jumped.totals.refused) == ("", 0)
