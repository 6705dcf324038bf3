"""Simulated fleets whose model is pruned while it trains, and devices that keep examples for testing."""

from dataclasses import replace
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest

from edgefl.codec.marks import gone
from edgefl.codec.weights import Precision
from edgefl.compress.magnitude import pruned
from edgefl.plan import FleetPruning, Plan
from edgefl.simulate.experiment import Dirichlet, Experiment, Group, Shards, Speeds
from edgefl.simulate.processes import LocalWorkers

pytest.importorskip("torch")
if find_spec("sklearn") is None:  # only its digits are read; to import it takes seconds
    pytest.skip("needs scikit-learn", allow_module_level=True)

RULES = FleetPruning(target=0.8, share=0.5, first=2)
PLAN = Plan(rounds=8, epochs=2, learning_rate=0.1, sparsity=0.1, cohort=4, pruning=RULES)
SMALL = Experiment(width=0.2, devices=10, plan=PLAN, split=Dirichlet(alpha=0.5))


def play(experiment):
    """A simulation's result."""
    from edgefl.simulate.run import simulate

    with LocalWorkers(1) as workers:
        return simulate(experiment, workers=workers)


def test_the_server_learns_where_its_own_weights_are_left(tmp_path):
    """What it learns of its root examples is about no weight that is gone, and is what a device would learn of them."""
    from edgefl.simulate.examiner import Examiner
    from edgefl.simulate.server import Server
    from edgefl.simulate.setting import set_scene

    experiment = msgspec.structs.replace(SMALL, plan=msgspec.structs.replace(PLAN, aggregator="root-set"), root=100)
    setting = set_scene(experiment)
    (family,) = setting.families
    layout = family.layout
    family = replace(family, weights=pruned(family.weights, layout, RULES))
    server = Server(experiment, family, [layout])
    examiner = Examiner(experiment, setting, tmp_path)
    change, removed = examiner.learned(family, server, 1), gone(family.weights, layout)
    assert removed.any()
    assert not change[removed].any()
    assert np.count_nonzero(change) > 0.5 * np.count_nonzero(~removed)
    engine, left = examiner.engine(family.widest), (~removed).astype(np.float32)
    engine.set_vector(family.weights)
    rng = np.random.default_rng([experiment.seed, 5, 1])
    engine.train(setting.root, epochs=PLAN.epochs, learning_rate=PLAN.learning_rate, rng=rng, kept=left)
    np.testing.assert_array_equal(change, engine.vector() - family.weights)


@pytest.mark.slow
def test_late_updates_of_two_widths_of_a_pruned_parent_all_count():
    """Buffered rounds, sparse downlink, int8, history: nothing is refused, whatever was gone when each device began."""
    groups = (Group(width=0.2), Group(width=0.1))
    plan = msgspec.structs.replace(PLAN, downlink_sparsity=0.2, correction=0.3, by_layer=True, staleness=20)
    result = play(
        msgspec.structs.replace(
            SMALL, plan=plan, groups=groups, mode="buffered", active=8, speeds=Speeds(), precision=Precision.INT8
        )
    )
    assert (result.trouble, result.totals.refused, result.totals.failed) == ("", 0, 0)
    assert result.totals.late > 0
    assert result.totals.pruned == pytest.approx(0.8, abs=0.01)


@pytest.mark.slow
def test_a_pruned_training_costs_less_both_ways_and_still_learns():
    """Against the same training without pruning; off is off."""
    pruned = play(SMALL)
    plain = play(msgspec.structs.replace(SMALL, plan=msgspec.structs.replace(PLAN, pruning=None)))
    assert plain.totals.pruned == 0.0
    assert pruned.totals.weights_bytes * 3 < plain.totals.weights_bytes
    assert pruned.totals.uplink_bytes < plain.totals.uplink_bytes
    assert pruned.totals.downlink_bytes < plain.totals.downlink_bytes
    assert pruned.totals.final_accuracy > pruned.rows[0].accuracy
    assert plain.own is None


@pytest.mark.slow
def test_what_devices_test_on_is_theirs_and_is_trained_on_by_nobody():
    """Every device's examples are cut in two, training sees the first part alone, and each device is measured by itself."""
    from edgefl.simulate.setting import set_scene

    experiment = msgspec.structs.replace(SMALL, split=Shards(each=2), tested=0.4, personal=("fc1.bias",))
    scene = set_scene(experiment).scene
    for device in range(scene.devices):
        own, kept = set(scene.trained_on(device).tolist()), set(scene.tested_on(device).tolist())
        assert own
        assert len(kept) == pytest.approx(0.4 * (len(own) + len(kept)), abs=1)
        assert not own & kept
    assert sum(len(scene.trained_on(device)) for device in range(scene.devices)) < len(np.unique(scene.rows))
    result = play(experiment)
    assert result.own is not None
    assert result.own.mean > result.totals.final_accuracy, "two classes are easier than ten"
