"""Whole simulations on scikit-learn's digits with a narrow model: what the result promises."""

import importlib.util
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgefl.errors import ConfigError, MachineError
from edgefl.plan import JumpStart, Plan
from edgefl.simulate.experiment import Attack, Dirichlet, Experiment, Iid, Shards, Speeds
from edgefl.simulate.processes import LocalWorkers
from edgefl.simulate.result import Result

pytest.importorskip("torch")
if importlib.util.find_spec("sklearn") is None:  # only its digits are read; to import it takes seconds
    pytest.skip("needs scikit-learn", allow_module_level=True)

PLAN = Plan(rounds=4, epochs=2, learning_rate=0.1, fraction=0.5, sparsity=0.05, bits=2)
SMALL = Experiment(width=0.1, devices=12, plan=PLAN, split=Dirichlet(alpha=0.5))


def play(experiment, workers, **options):
    """A simulation's result."""
    from edgefl.simulate.run import simulate

    return simulate(experiment, workers=workers, **options)


def essence(result):
    """Everything of a result but the real time that it took."""
    return msgspec.structs.replace(result, totals=msgspec.structs.replace(result.totals, seconds=0.0)).json()


@pytest.fixture(scope="module")
def workers():
    """Two processes that all tests of this file use."""
    with LocalWorkers(2) as pool:
        yield pool


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attack": Attack(kind="alie", fraction=0.3)},
        {"mode": "buffered", "active": 5, "speeds": Speeds(), "plan": msgspec.structs.replace(PLAN, cohort=3)},
        {"plan": msgspec.structs.replace(PLAN, downlink_sparsity=0.02, correction=0.5, sampling="loss", rate="loss")},
    ],
    ids=["plain", "alie", "buffered", "everything"],
)
def test_the_number_of_workers_does_not_show(workers, changes) -> None:
    """One worker and two give the same result to the last bit."""
    experiment = msgspec.structs.replace(SMALL, **changes)
    with LocalWorkers(1) as one:
        assert essence(play(experiment, one)) == essence(play(experiment, workers))


@pytest.mark.slow
def test_ray_gives_the_same_result(workers) -> None:
    """The pool on Ray is the pool on processes, to the last bit; a Ray that is started here is on loopback alone."""
    if importlib.util.find_spec("ray") is None:  # importing it here would let it listen on all addresses
        pytest.skip("ray is not installed")
    from edgefl.simulate.cluster import RayWorkers

    for changes in ({}, {"attack": Attack(kind="alie", fraction=0.3)}):
        experiment = msgspec.structs.replace(SMALL, **changes)
        with RayWorkers(2) as cluster:
            assert essence(play(experiment, cluster)) == essence(play(experiment, workers))
            assert cluster._ray.util.get_node_ip_address() == "127.0.0.1"


def test_another_seed_gives_another_result(workers) -> None:
    """The seed decides everything random: weights, split, selection."""
    first, other = play(SMALL, workers), play(msgspec.structs.replace(SMALL, seed=1), workers)
    assert first.rows[0].loss != other.rows[0].loss
    assert first.participation.mean == other.participation.mean == 2.0


def test_it_learns_and_the_books_add_up(workers) -> None:
    """Accuracy rises far above chance; bytes only grow; dense bytes are four for each parameter and update."""
    seen = []
    result = play(msgspec.structs.replace(SMALL, plan=msgspec.structs.replace(PLAN, rounds=8, fraction=1.0)), workers,
                  progress=seen.append)  # fmt: skip
    assert result.totals.final_accuracy > 0.6
    assert [now.round for now in seen] == list(range(1, 9))
    ups = [row.uplink_bytes for row in result.rows]
    assert ups == sorted(ups)
    assert result.totals.updates == 8 * 12
    assert result.totals.dense_uplink_bytes == 4 * result.totals.parameters * result.totals.updates
    assert result.totals.uplink_bytes < result.totals.dense_uplink_bytes / 50
    assert result.totals.downlink_bytes > result.totals.dense_uplink_bytes  # whole files, and their heads
    assert result.devices.least <= result.devices.worst_tenth <= result.devices.mean


def test_a_result_survives_json(workers) -> None:
    """What is written is read back."""
    result = play(SMALL, workers)
    assert Result.read(result.json()) == result


def test_it_stops_at_the_target_and_evaluates_as_often_as_asked(workers) -> None:
    """The target ends it in the first evaluated round that reaches it; the last round is always evaluated."""
    result = play(msgspec.structs.replace(SMALL, evaluate_every=3), workers)
    assert [row.round for row in result.rows] == [3, 4]
    stopped = play(msgspec.structs.replace(SMALL, target=0.01), workers)
    assert (stopped.totals.rounds, stopped.totals.target_round) == (1, 1)


def test_a_synchronous_round_lasts_as_long_as_its_slowest_device(workers) -> None:
    """Equal devices take examples times epochs times seconds, and what their bytes take on the link."""
    experiment = Experiment(width=0.1, devices=10, examples=100, plan=msgspec.structs.replace(PLAN, rounds=2, fraction=1.0))
    quick = msgspec.structs.replace(experiment, speeds=Speeds(distribution="equal", seconds_per_example=0.01))
    assert [row.time for row in play(quick, workers).rows] == pytest.approx([2.0, 4.0])
    slow = msgspec.structs.replace(experiment, speeds=Speeds(distribution="equal", seconds_per_example=0.01, uplink=100.0))
    rows = play(slow, workers).rows
    assert rows[0].time > 2.0 + rows[0].uplink_bytes / 10 / 100.0 * 0.9


def test_buffered_rounds_are_quicker_where_speeds_differ(workers) -> None:
    """With heavy-tailed speeds the same number of updates arrives much sooner, and some of them late."""
    speeds = Speeds(distribution="pareto", spread=1.5)
    plan = msgspec.structs.replace(PLAN, rounds=12, fraction=0.5, cohort=6, staleness=12)
    synchronous = msgspec.structs.replace(SMALL, speeds=speeds, plan=plan)
    buffered = msgspec.structs.replace(synchronous, mode="buffered", active=12)
    waited, flowed = play(synchronous, workers), play(buffered, workers)
    assert waited.totals.updates == flowed.totals.updates == 72
    assert flowed.totals.time < waited.totals.time / 2
    assert flowed.totals.late > 0
    assert waited.totals.late == 0


def test_selection_exact_and_lottery(workers) -> None:
    """`exact` takes the fraction in every round; the lots of a lottery take it on average."""
    exact = play(SMALL, workers)
    assert [row.participants for row in exact.rows] == [6] * 4
    drawn = play(msgspec.structs.replace(SMALL, selection="lottery"), workers)
    assert {row.participants for row in drawn.rows} != {6}
    assert 0 < sum(row.participants for row in drawn.rows) < 48


def test_an_attack_hurts_the_mean(workers) -> None:
    """Strong attackers leave a plain mean without its accuracy; they are left out of the devices' own figures."""
    plan = msgspec.structs.replace(PLAN, rounds=6, fraction=1.0)
    calm = play(msgspec.structs.replace(SMALL, plan=plan, split=Shards(each=4)), workers)
    attack = Attack(kind="sign-flip", fraction=0.3, strength=10.0)
    hit = play(msgspec.structs.replace(SMALL, plan=plan, split=Shards(each=4), attack=attack), workers)
    assert hit.totals.final_accuracy < calm.totals.final_accuracy - 0.2


@pytest.mark.parametrize("aggregator", ["trimmed-mean", "multi-krum", "root-set"])
def test_robust_aggregators_stand_what_the_mean_does_not(workers, aggregator) -> None:
    """With a third of the devices reversing ten times their updates, training goes on."""
    plan = msgspec.structs.replace(PLAN, rounds=6, fraction=1.0, aggregator=aggregator, attackers=0.4, clip=1.0)
    attack = Attack(kind="sign-flip", fraction=0.25, strength=10.0)
    experiment = msgspec.structs.replace(SMALL, plan=plan, split=Iid(), attack=attack, root=100, seed=2)
    plain = msgspec.structs.replace(plan, aggregator="mean", clip=0.0)
    ruined = play(msgspec.structs.replace(experiment, plan=plain), workers)
    stood = play(experiment, workers)
    assert stood.totals.final_accuracy > max(0.5, ruined.totals.final_accuracy + 0.2)


def test_hostile_devices_lose_their_standing_and_are_excluded(workers) -> None:
    """An aggregator that looks tells attackers from the honest; those whose standing falls to the plan's bound are out."""
    plan = msgspec.structs.replace(PLAN, rounds=8, fraction=1.0, aggregator="multi-krum", attackers=0.3, clip=1.0, exclude=0.4)
    attack = Attack(kind="sign-flip", fraction=0.25, strength=5.0)
    result = play(msgspec.structs.replace(SMALL, plan=plan, split=Iid(), attack=attack), workers)
    assert result.standing.hostile < 0.5 < result.standing.honest
    assert (result.standing.excluded_hostile, result.standing.excluded_honest) == (3, 0)
    assert result.rows[-1].participants == 9


def test_impossible_experiments_are_refused(workers, monkeypatch) -> None:
    """Buffered without speeds, no devices, a root set of everything, data that is not there."""
    monkeypatch.delenv("EDGEFL_DATA", raising=False)
    for changes in (
        {"mode": "buffered"},
        {"mode": "buffered", "speeds": Speeds(), "attack": Attack(kind="alie")},
        {"devices": 0},
        {"root": 5000},
        {"plan": Plan(jump_start=JumpStart(devices=100))},
        {"plan": Plan(aggregator="root-set")},
        {"data": "idx:$EDGEFL_DATA/mnist"},
    ):
        with pytest.raises(ConfigError):
            play(msgspec.structs.replace(SMALL, **changes), workers)


def test_a_worker_that_dies_is_named_and_others_are_ended() -> None:
    """A killed worker is a machine's error; the pool works again afterwards."""
    with LocalWorkers(2) as pool:
        with pytest.raises(MachineError, match="died"):
            play(SMALL, pool, progress=lambda _: pool._hands[0].process.kill())
        assert not pool._hands
        assert play(SMALL, pool).totals.updates == 24


def test_temporary_files_are_gone_afterwards(tmp_path) -> None:
    """Nothing of a simulation stays in its directory."""
    with LocalWorkers(1, tmp_path) as pool:
        play(SMALL, pool)
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_devices() -> None:
    """150 devices need hardly more memory than ten: neither the simulation nor its workers keep what is theirs."""
    code = (
        "import resource, sys\n"
        "from edgefl.plan import Plan\n"
        "from edgefl.simulate.experiment import Experiment\n"
        "from edgefl.simulate.processes import LocalWorkers\n"
        "from edgefl.simulate.run import simulate\n"
        "devices = int(sys.argv[1])\n"
        "plan = Plan(rounds=max(1, 30 // devices), sparsity=0.01, bits=1, context=False)\n"
        "with LocalWorkers(1) as workers:\n"
        "    simulate(Experiment(devices=devices, plan=plan), workers=workers)\n"
        "for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):\n"
        "    print(resource.getrusage(who).ru_maxrss)\n"
    )
    found = {}
    for devices in (10, 150):
        run = subprocess.run([sys.executable, "-c", code, str(devices)], capture_output=True, text=True, check=True)
        found[devices] = [int(line) for line in run.stdout.split()]
    grown = np.subtract(found[150], found[10])
    # The residuals of 150 devices are 120 MB.
    assert (grown < 60_000).all(), found


def test_workers_load_no_torch() -> None:
    """What plays a device loads what a board loads."""
    code = "import sys, edgefl.simulate.worker; print([m for m in ('torch', 'onnx', 'sklearn', 'click') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
