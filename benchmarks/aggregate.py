"""What a round costs the server, beside Flower's aggregation: `python -m benchmarks.aggregate --json FILE`.

Model: N updates of a model of 1.66 million parameters (`benchmarks.updates`). edgefl decodes N encoded updates, folds each into the
streaming mean and takes the result: once updates without context (p = 0.01, ternary), once those of the default plan (p = 0.02, 4
bits, coded in the context of the model's history; the history's weights are at hand, what is computed of them is in the time).
Flower, in an environment of its own, reads N messages with a dense vector each and adds them (`recorddict_from_proto`,
`aggregate_arrayrecords`; the adding alone is told apart). Each measurement is a process of its own, the systems take turns, and the
middle of the measurements counts, beside the least (`least_seconds`) for a machine that others use; memory is the largest resident size. Flower's grows with N: what would not fit `--limit` is left
out and said.

Rule: both sides begin with the bytes that have arrived, and end with the mean; neither pays for its transport.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np

from benchmarks.updates import DEFAULT, SIZE, SPARSE, Fleet
from benchmarks.uplink_peers import Peer, install
from benchmarks.uplink_result import LeftOutError

DISTINCT = 20
"""Encoded updates that differ; each is read many times."""
PLAIN, CONTEXT, FLOWER = "edgefl, p = 0.01, 1 bit", "edgefl, default plan", "Flower"

Row = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, print a table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--updates", nargs="+", type=int, default=[100, 1000], metavar="N")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--limit", type=float, default=8.0, metavar="GB", help="memory that Flower may need")
    parser.add_argument("--peers", type=Path, default=Path(gettempdir()) / "edgefl-peers", help="where Flower is installed")
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args(arguments)
    flower, left_out = (None, "not asked for") if given.without_flower else _flower(given.peers)
    rows: list[Row] = []
    with TemporaryDirectory(prefix="edgefl-aggregate-") as directory:
        arrived = _arrivals(Path(directory))
        for updates in given.updates:
            systems = {name: _edgefl(updates, place) for name, place in arrived.items()}
            needed = updates * SIZE * 4 / 1e9
            if flower is not None and needed <= given.limit:
                systems[FLOWER] = _of_flower(flower, updates)
            elif flower is not None:
                left_out = f"{updates} dense vectors are {needed:.1f} GB, above the limit of {given.limit:g}"
            found = [{name: _child(command) for name, command in systems.items()} for _ in range(given.repeat)]
            rows += [_row(name, updates, [turn[name] for turn in found]) for name in systems]
    _print(rows, left_out)
    if given.json is not None:
        report = {"rows": rows, "size": SIZE, "left_out": left_out, "flower": flower.version if flower else None}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _arrivals(directory: Path) -> dict[str, Path]:
    """Directories of updates by system."""
    rng = np.random.default_rng(0)
    fleet = Fleet.of(rng)
    places = {PLAIN: directory / "plain", CONTEXT: directory / "context"}
    for (name, place), scheme in zip(places.items(), (SPARSE, DEFAULT), strict=True):
        place.mkdir()
        for number in range(DISTINCT):
            (place / f"{number:02}.efu").write_bytes(fleet.update(scheme, rng, context=name == CONTEXT))
    np.save(places[CONTEXT] / "history.npy", np.stack([fleet.history.start, fleet.history.before, fleet.history.now]))
    return places


def _edgefl(updates: int, directory: Path) -> Sequence[str]:
    return [sys.executable, "-m", "benchmarks.aggregate_once", str(updates), str(directory)]


def _of_flower(flower: Peer, updates: int) -> Sequence[str]:
    script = Path(__file__).parent / "peers" / "flower_mean.py"
    return [str(flower.program("python")), str(script), str(updates), str(SIZE), "0"]


def _child(command: Sequence[str]) -> Row:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: a measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def _flower(root: Path) -> tuple[Peer | None, str]:
    try:
        return install("flwr", root), ""
    except LeftOutError as error:
        return None, str(error)


def _row(system: str, updates: int, found: Sequence[Row]) -> Row:
    """The median of every number but of the memory, which is the largest."""
    row: Row = {"system": system, "updates": updates}
    row |= {name: statistics.median(float(str(item[name])) for item in found) for name in found[0]}
    row["peak_bytes"] = max(int(str(item["peak_bytes"])) for item in found)
    row["least_seconds"] = min(float(str(item["seconds"])) for item in found)
    row["all_seconds"] = [item["seconds"] for item in found]
    return row


def _print(rows: Sequence[Row], left_out: str) -> None:
    """Ratios are Flower's time over that of the row."""
    print(f"{'system':26}{'updates':>9}{'seconds':>10}{'CPU, s':>10}{'ms/update':>11}{'peak, MB':>10}{'ratio':>8}")
    for row in rows:
        seconds, cpu, updates = float(str(row["seconds"])), float(str(row["cpu_seconds"])), int(str(row["updates"]))
        peak = int(str(row["peak_bytes"])) / 1e6
        peer = [float(str(r["seconds"])) for r in rows if (r["system"], r["updates"]) == (FLOWER, updates)]
        ratio = f"{peer[0] / seconds:.1f}" if peer else ""
        print(f"{row['system']:26}{updates:>9}{seconds:>10.4f}{cpu:>10.4f}{seconds / updates * 1e3:>11.3f}{peak:>10.0f}{ratio:>8}")
    if left_out:
        print(f"left out: {left_out}")


if __name__ == "__main__":
    main()
