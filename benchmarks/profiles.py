"""How good a model arrives on boards of six sizes, and after some training there: `python -m benchmarks.profiles --json FILE`.

Model: a model is trained in the middle on MNIST's digits or on windows of motion sensors (HAPT, split by person). Part of the
training data is held out for the planner; accuracy is measured on the test data, which it has not seen. The boards' storage is a
share of what the whole model takes in float32. Two ways to choose compete:

* `widest`: the widest nested width that fits, then the most precise weights: what is chosen without held-out examples;
* `planned`: the most accurate of widths and pruned structures by `edgefl.compress.planner`.

`arrival` is the accuracy of the decoded weights; `accuracy` that after one pass over `LOCAL` examples in torch, as on one board.
Bytes of graphs are left out: they are the same few kilobytes for all. Data is read from the directory that EDGEFL_DATA names.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgefl import __version__
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.compress.budget import Candidate, Structure, candidates, choose
from edgefl.compress.planner import Budget
from edgefl.errors import EdgeflError
from edgefl.examples import Examples
from edgefl.export.measuring import accuracy_in_torch
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import load_vector, vector_of
from edgefl.layout import Float32
from edgefl.server.cuts import nested_cuts
from edgefl.server.sensing import Offered, offer
from edgefl.sources.parse import open_source

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Storage of the six boards, as part of what the whole model takes."""
HELD_OUT, LOCAL, BATCH, RATE = 1000, 500, 32, 0.05

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Task:
    """Model, data below EDGEFL_DATA, passes of central training."""

    model: str
    source: str
    passes: int


TASKS = (Task("mnist-2nn", "idx:{}/mnist", 2), Task("har-cnn1d", "windows:{}/hapt_raw/hapt_raw.npz", 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all tasks, print the table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default: %(default)s)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for task in TASKS:
            for seed in range(given.seeds):
                rows += measured(task, seed, Path(os.environ.get("EDGEFL_DATA", "data")))
                print(f"  {task.model}, seed {seed}: done", flush=True)
    except EdgeflError as error:
        raise SystemExit(f"error: {error}") from None
    print_table(rows)
    if given.json is not None:
        about = {"name": "profiles", "edgefl": __version__, "python": platform.python_version(), "torch": torch.__version__}
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measured(task: Task, seed: int, data: Path) -> Iterator[Row]:
    """Two rows for each board. Raises EdgeflError."""
    source = load_factory(task.model)
    place = task.source.format(data)
    order = np.random.default_rng(seed).permutation
    train = open_source(f"{place}?split=train").load().shaped(source.input_shape, source.classes)
    train = train.take(order(len(train)))
    held, local, rest = _parts(train)
    test = open_source(f"{place}?split=test").load().shaped(source.input_shape, source.classes)
    module = source.build(seed=seed)
    for number in range(task.passes):
        one_pass(module, rest, seed=100 * seed + number)
    parent = vector_of(module)
    offered = offer(source, parent, held, lambda _: None)
    whole = nested_cuts(source)
    for share in SHARES:
        budget = Budget(share * candidates([whole[0].structure], {})[0].footprint)
        for method, chosen in _choices(offered, [cut.structure for cut in whole], budget):
            label = f"{task.model} 1/{round(1 / share)} {method}"
            yield _row(label, seed, chosen, offered, parent, local, test)


def _parts(train: Examples) -> tuple[Examples, Examples, Examples]:
    ends = (HELD_OUT, HELD_OUT + LOCAL)
    rows = np.arange(len(train))
    return train.take(rows[: ends[0]]), train.take(rows[ends[0] : ends[1]]), train.take(rows[ends[1] :])


def _choices(offered: Offered, nested: Sequence[Structure], budget: Budget) -> Iterator[tuple[str, Candidate]]:
    yield "widest", choose("board", budget, candidates(nested, {}))[0]
    structures = [cut.structure for cut in offered.cuts.values()]
    predicted: Callable[..., float | None] | None = offered.predicted if offered.baseline else None
    yield "planned", choose("board", budget, candidates(structures, {}, predicted=predicted))[0]


def _row(label: str, seed: int, chosen: Candidate, offered: Offered, parent: Float32, local: Examples, test: Examples) -> Row:
    cut = offered.cuts[chosen.structure.name]
    source: ModelSource = cut.source
    module = source.build(cut.structure.width)
    data = encode_weights(cut.slice(parent), chosen.layout, chosen.precision)
    load_vector(module, decode_weights(data, chosen.layout))
    arrival = accuracy_in_torch(module, test, source.recipe)
    one_pass(module, local, seed=seed)
    return {
        "label": label,
        "seed": seed,
        "accuracy": accuracy_in_torch(module, test, source.recipe),
        "arrival": arrival,
        "predicted": chosen.accuracy,
        "bytes": len(data),
        "footprint": chosen.footprint,
        "variant": chosen.name,
    }


def one_pass(module: nn.Module, examples: Examples, *, seed: int) -> None:
    """One pass of SGD with cross-entropy."""
    rows = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for chosen in torch.split(rows, BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()


def print_table(rows: Sequence[Row]) -> None:
    """Means over the seeds."""
    print(f"\n{'':30}{'arrival':>9}{'trained':>9}{'bytes':>10}  variants")
    for label in dict.fromkeys(str(row["label"]) for row in rows):
        found = [row for row in rows if row["label"] == label]
        means = [statistics.fmean(float(str(row[field])) for row in found) for field in ("arrival", "accuracy", "bytes")]
        variants = " ".join(dict.fromkeys(str(row["variant"]) for row in found))
        print(f"{label:30}{means[0]:>9.4f}{means[1]:>9.4f}{means[2]:>10,.0f}  {variants}")


if __name__ == "__main__":
    main()
