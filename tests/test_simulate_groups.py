"""Fleets of several structures in one simulation: widths of one parent, families, and what they learn from each other."""

import sys
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest

from edgefl.errors import ConfigError, ModelError
from edgefl.plan import Plan
from edgefl.simulate.experiment import Attack, Dirichlet, Ensemble, Experiment, Group, Iid, Speeds
from edgefl.simulate.processes import LocalWorkers
from edgefl.simulate.result import Result

pytest.importorskip("torch")
if find_spec("sklearn") is None:  # only its digits are read; to import it takes seconds
    pytest.skip("needs scikit-learn", allow_module_level=True)

from edgefl.simulate.checks import check
from edgefl.simulate.run import simulate
from edgefl.simulate.setting import assigned, set_scene

TOWER = """
import torch
from torch import nn

class Tower(nn.Module):
    input_shape = (784,)

    def __init__(self, width=1.0, exits=3):
        super().__init__()
        n = round(32 * width)
        self.stages = nn.ModuleList(nn.Linear(784 if i == 0 else n, n) for i in range(exits))
        self.exits = nn.ModuleList(nn.Linear(n, 10) for _ in range(exits))

    def forward(self, x):
        logits = []
        for stage, last in zip(self.stages, self.exits):
            x = stage(x).relu()
            logits.append(last(x))
        return torch.stack(logits, 1)
"""
PLAN = Plan(rounds=3, epochs=2, learning_rate=0.1, sparsity=0.05, bits=2)
WIDTHS = (Group(width=0.1), Group(width=0.05, share=2.0))
FAMILIES = (*WIDTHS, Group(model="mnist-cnn", width=0.05))
MIXED = Experiment(groups=FAMILIES, devices=12, plan=PLAN, split=Dirichlet(alpha=0.5), holdout="digits:?split=test")
TAUGHT = msgspec.structs.replace(MIXED, ensemble=Ensemble(labelled=40, unlabelled=80, every=1))


def essence(result):
    """Everything of a result but the real time that it took."""
    return msgspec.structs.replace(result, totals=msgspec.structs.replace(result.totals, seconds=0.0)).json()


@pytest.fixture(scope="module")
def workers():
    """Two processes that all tests of this file use."""
    with LocalWorkers(2) as pool:
        yield pool


def test_shares_are_kept_and_the_seed_decides_who() -> None:
    """Devices are assigned in proportion to the shares, the same way for the same seed, another way for another one."""
    kinds = assigned([1.0, 2.0, 1.0], 13, seed=0)
    assert np.bincount(kinds).tolist() == [3, 7, 3]
    assert np.array_equal(kinds, assigned([2.0, 4.0, 2.0], 13, seed=0))
    assert not np.array_equal(kinds, assigned([1.0, 2.0, 1.0], 13, seed=1))
    assert assigned([0.001, 1.0], 3, seed=0).tolist() == [1, 1, 1]


def test_widths_are_views_of_one_parent_and_families_are_not() -> None:
    """Groups of one model begin with the same numbers where they overlap; another model has a parent of its own."""
    families = set_scene(MIXED).families
    assert [list(family.views) for family in families] == [[0, 1], [2]]
    wide, narrow = families[0].views.values()
    assert wide is None
    assert len(narrow) < families[0].layout.size
    assert len(np.unique(narrow)) == len(narrow)


@pytest.fixture
def tower(tmp_path, monkeypatch):
    """A model of three exits where experiments find it."""
    (tmp_path / "towers.py").write_text(TOWER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "towers", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("tower")
def test_depths_are_views_of_one_parent_at_any_width() -> None:
    """The parent is the group with most exits and width, wherever it stands; without such a group nobody holds the model."""
    groups = (Group(model="towers:Tower", width=0.5, exits=2), Group(model="towers:Tower"), Group(model="towers:Tower", exits=1))
    deep = msgspec.structs.replace(MIXED, groups=groups, loss="self-distillation")
    (family,) = set_scene(deep).families
    assert list(family.views) == [1, 0, 2]
    assert family.widest == 1
    assert family.views[1] is None
    assert set(family.views[2]) - set(family.views[0])  # it is wider
    assert set(family.views[0]) - set(family.views[2])  # it is deeper
    assert [len(set(view)) for view in (family.views[0], family.views[2])] == [13_172, 25_450]
    with pytest.raises(ConfigError, match=r"no group holds.*whole"):
        set_scene(msgspec.structs.replace(deep, groups=(Group(model="towers:Tower", exits=1), groups[0])))


@pytest.mark.usefixtures("tower")
def test_depths_of_one_model_are_different_groups() -> None:
    """Two groups with the same width are refused only if they have the same exits; more exits than there are say so."""
    groups = (Group(model="towers:Tower"), Group(model="towers:Tower", exits=2))
    check(msgspec.structs.replace(MIXED, groups=groups))
    with pytest.raises(ConfigError, match="same structure"):
        check(msgspec.structs.replace(MIXED, groups=(*groups, groups[1])))
    with pytest.raises(ModelError, match="has no 5 exits"):
        set_scene(msgspec.structs.replace(MIXED, groups=(groups[0], Group(model="towers:Tower", exits=5))))


def test_lessons_need_a_loss_that_can_take_soft_labels() -> None:
    """Self-distillation can, a masked softmax cannot."""
    check(msgspec.structs.replace(TAUGHT, loss="self-distillation"))
    with pytest.raises(ConfigError, match="expected cross-entropy or self-distillation"):
        check(msgspec.structs.replace(TAUGHT, loss="masked-cross-entropy"))


def test_a_ramp_needs_the_loss_that_it_is_for() -> None:
    """Other losses have nothing that exits could learn of each other."""
    ramped = msgspec.structs.replace(MIXED, plan=msgspec.structs.replace(PLAN, ramp=4))
    check(msgspec.structs.replace(ramped, loss="self-distillation"))
    with pytest.raises(ConfigError, match="expected self-distillation, found cross-entropy"):
        check(ramped)


@pytest.mark.slow
@pytest.mark.parametrize("ramp", [0, 9])
@pytest.mark.usefixtures("tower")
def test_every_depth_learns(workers, ramp) -> None:
    """A few rounds in which devices of three depths teach themselves and each other, at once or by and by."""
    groups = tuple(Group(model="towers:Tower", width=0.5, exits=exits) for exits in (3, 2, 1))
    plan = msgspec.structs.replace(PLAN, rounds=6, sparsity=1.0, bits=8, ramp=ramp)
    deep = msgspec.structs.replace(MIXED, groups=groups, loss="self-distillation", plan=plan, evaluate_every=6, split=Iid())
    result = simulate(deep, workers=workers)
    names = [quality.name for quality in result.rows[-1].structures]
    assert names == [f"towers:Tower 0.5, {exits} exits" for exits in (3, 2, 1)]
    assert min(quality.accuracy for quality in result.rows[-1].structures) > 0.6
    assert not result.trouble


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "buffered", "active": 5, "speeds": Speeds(), "plan": msgspec.structs.replace(PLAN, cohort=4)}],
    ids=["synchronous", "buffered"],
)
def test_the_number_of_workers_does_not_show(workers, changes) -> None:
    """One worker and two give the same result to the last bit, with widths, families and lessons; it survives JSON."""
    experiment = msgspec.structs.replace(TAUGHT, **changes)
    with LocalWorkers(1) as one:
        first, second = simulate(experiment, workers=one), simulate(experiment, workers=workers)
    assert essence(first) == essence(second)
    assert Result.read(first.json()) == first
    assert not first.trouble


@pytest.mark.slow
def test_everybody_is_judged_and_lessons_help(workers) -> None:
    """Rows name each structure and ensemble; with two classes a device, families that learn from each other are better."""
    longer = msgspec.structs.replace(TAUGHT, plan=msgspec.structs.replace(PLAN, rounds=8, sparsity=0.2), evaluate_every=8)
    lessons = Ensemble(labelled=60, unlabelled=200, every=1, epochs=3, learning_rate=0.1)
    taught = simulate(msgspec.structs.replace(longer, ensemble=lessons), workers=workers)
    apart = msgspec.structs.replace(lessons, every=0)
    alone = simulate(msgspec.structs.replace(longer, ensemble=apart), workers=workers)
    names = [quality.name for quality in alone.rows[-1].structures]
    assert names == ["mnist-2nn 0.1", "mnist-2nn 0.05", "mnist-cnn 0.05"]
    assert [quality.name for quality in alone.rows[-1].ensembles] == ["uniform", "weighted"]
    assert alone.rows[-1].accuracy == alone.rows[-1].ensembles[-1].accuracy
    assert alone.totals.updates == taught.totals.updates == 96

    def mean(result):
        return np.mean([quality.accuracy for quality in result.rows[-1].structures])

    assert mean(taught) > mean(alone) + 0.05, (alone.rows, taught.rows)


def test_a_width_alone_is_the_same_as_a_group_of_it(workers) -> None:
    """One group says what model and width say."""
    plain = Experiment(width=0.05, devices=6, plan=PLAN)
    grouped = msgspec.structs.replace(plain, width=1.0, groups=(Group(width=0.05),))
    assert simulate(plain, workers=workers).rows == simulate(grouped, workers=workers).rows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": Attack(kind="alie")}, "same structure"),
        ({"groups": (Group(), Group(share=2.0))}, "two groups"),
        ({"groups": WIDTHS, "ensemble": Ensemble(labelled=10)}, "families"),
        ({"ensemble": Ensemble(every=1)}, "examples on the server"),
        ({"loss": "bce", "ensemble": Ensemble(labelled=10)}, "classify"),
    ],
)
def test_impossible_fleets_are_refused(changes, said) -> None:
    """What can be seen to be impossible is an error before any data is read."""
    with pytest.raises(ConfigError, match=said):
        check(msgspec.structs.replace(MIXED, **changes))


def test_models_with_different_outputs_are_refused() -> None:
    """They cannot answer the same question about the same data."""
    groups = (Group(width=0.05), Group(model="har-cnn1d", width=0.125))
    with pytest.raises(ConfigError, match="different outputs"):
        set_scene(msgspec.structs.replace(MIXED, groups=groups))
