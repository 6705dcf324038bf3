"""The cases of families that learn from each other: six profiles, three families, one ensemble.

Each result has four cases: every device trains the same structure without compression, families learn from each other, families
stay apart, and every device trains the smallest structure that sees neighbours.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from benchmarks.case import Case, case, dense
from edgefl.codec.weights import Precision
from edgefl.plan import Plan
from edgefl.simulate.experiment import Dirichlet, Ensemble, Experiment, Group, Shards, located
from edgefl.sources.npz import read_npz

_TEMPORARY = TemporaryDirectory(prefix="edgefl-benchmark-")
DIGITS = tuple(f"benchmarks.families:digits_{name}" for name in ("perceptron", "image", "sequence"))
XRAYS = tuple(f"benchmarks.families:xray_{name}" for name in ("perceptron", "image", "sequence"))


def ensemble() -> Sequence[Case]:
    """Six profiles of three families, two digits on each of 60 devices."""
    plan = Plan(rounds=60, epochs=2, learning_rate=0.1, fraction=0.5, sparsity=0.1, bits=4, context=False)
    base = Experiment(
        data="idx:$EDGEFL_DATA/mnist?split=train",
        holdout="idx:$EDGEFL_DATA/mnist?split=test",
        devices=60,
        examples=200,
        batch=20,
        split=Shards(each=2),
        plan=plan,
        evaluate_every=60,
        ensemble=Ensemble(labelled=50, unlabelled=450, every=2, epochs=1, learning_rate=0.1),
    )
    return _taught("digits", base, DIGITS)


def ensemble_xray() -> Sequence[Case]:
    """Six profiles of three families, chest X-rays of 30 hospitals with very different shares of pneumonia."""
    plan = Plan(rounds=20, epochs=2, learning_rate=0.05, sparsity=0.1, bits=4, context=False)
    base = Experiment(
        data=f"npz:{xrays()}/train.npz",
        holdout=f"npz:{xrays()}/test.npz",
        devices=30,
        batch=20,
        split=Dirichlet(alpha=0.3),
        plan=plan,
        evaluate_every=20,
        ensemble=Ensemble(labelled=200, unlabelled=600, every=1, epochs=2, learning_rate=0.05),
    )
    return _taught("xray", base, XRAYS)


def _taught(name: str, base: Experiment, models: Sequence[str]) -> Sequence[Case]:
    """Families that learn from each other, families apart, the smallest structure that sees neighbours for all, the full one."""
    apart = msgspec.structs.replace(base.ensemble or Ensemble(), every=0)
    mixed = msgspec.structs.replace(base, groups=_six(models))
    alone = msgspec.structs.replace(base, model=models[1], ensemble=None)
    return [
        case(f"{name} fp32", alone, plan=dense(alone), precision=Precision.FP32),
        case(f"{name} taught", mixed),
        case(f"{name} apart", mixed, ensemble=apart),
        case(f"{name} smallest-for-all", alone, width=0.5),
    ]


def _six(models: Sequence[str]) -> tuple[Group, ...]:
    """Six profiles: three families at two widths, each on as many devices."""
    return tuple(Group(model=model, width=width) for model in models for width in (1.0, 0.5))


@cache
def xrays() -> Path:
    """A directory with PneumoniaMNIST (https://doi.org/10.1038/s41597-022-01721-8) as the sources `train.npz` and `test.npz`.

    Raises:
        ConfigError, DataError: the data is not there.
    """
    directory = Path(_TEMPORARY.name)
    names = [f"{part}_{what}" for part in ("train", "test") for what in ("images", "labels")]
    found = read_npz(Path(located("$EDGEFL_DATA/pneumoniamnist/pneumoniamnist.npz")), tuple(names))
    for part in ("train", "test"):
        np.savez(directory / f"{part}.npz", x=found[f"{part}_images"], y=found[f"{part}_labels"])
    return directory
