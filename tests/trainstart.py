"""A toy fleet in a directory where commands find it, and `edgefl train start` on it.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import shutil

import toyfleet as toy
from edgefl.cli.main import run
from edgefl.store.ledger import Outcome, close_round, newest_training
from toyclock import START


def commanded(founded, root, monkeypatch):
    """Four devices and one version in a copy of a fleet directory, below `root`."""
    fleet = toy.fleet_of_four(shutil.copytree(founded, root / "fleet"))
    monkeypatch.setenv("EDGEFL_FLEET", str(fleet.root))
    return fleet


def start(*options):
    """`edgefl train start toy`; its exit code."""
    return run(["train", "start", "toy", *options])


def plan_of(fleet):
    """The plan of the newest training."""
    return newest_training(fleet.database, "toy").plan


def close(database, training, number, *, last=False):
    """Close a round as the server does."""
    assert close_round(database, training, number, Outcome([], bytes(32), 0.25 * number, 1.0 / number), START, last=last)
