"""What a round costs the server, beside Flower's aggregation: `python -m benchmarks.aggregate --json FILE`.

Model: N updates of a model of 1.66 million parameters (`benchmarks.updates`). edgefl decodes N encoded updates, folds each into
the streaming mean and takes the result: updates without context (p = 0.01, ternary), with positions that are scattered evenly or
clustered as gradients' are, and those of the default plan (p = 0.02, 4 bits, coded in the context of the model's history; the
history's weights are at hand, what is computed of them is in the time). Flower, in an environment of its own, reads N messages
with a dense vector each and adds them (`recorddict_from_proto`, `aggregate_arrayrecords`, as its server does; the adding alone is
told apart). Each measurement is a process of its own and the systems take turns. The middle of the measurements counts, beside
the least (`least_seconds`) and CPU seconds for a machine that others use; memory is the largest resident size. Flower's grows
with N: what would not fit `--limit` is left out and said.

Rule: both sides begin with the bytes that have arrived, and end with the mean; neither pays for its transport.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np

from benchmarks.updates import DEFAULT, SIZE, SPARSE, Fleet, scattered
from benchmarks.uplink_peers import Peer, install
from benchmarks.uplink_result import LeftOutError
from edgefl.codec.compress import Memory, compress
from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.layout import Float32

DISTINCT = 20
"""Encoded updates that differ; each is read many times."""
SCATTERED, CLUSTERED = "edgefl, p = 0.01, scattered", "edgefl, p = 0.01, clustered"
CONTEXT, FLOWER = "edgefl, default plan", "Flower"

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
    kinds: dict[str, tuple[Scheme, Callable[[np.random.Generator], Float32], History | None]] = {
        SCATTERED: (SPARSE, scattered, None),
        CLUSTERED: (SPARSE, fleet.delta, None),
        CONTEXT: (DEFAULT, fleet.delta, fleet.history),
    }
    places = {}
    for number, (name, (scheme, delta, history)) in enumerate(kinds.items()):
        places[name] = place = directory / str(number)
        place.mkdir()
        for update in range(DISTINCT):
            made = compress(delta(rng), Memory.empty(SIZE, scheme), scheme, history=history, rng=rng)
            (place / f"{update:02}.efu").write_bytes(made.data)
        if history is not None:
            np.save(place / "history.npy", np.stack([history.start, history.before, history.now]))
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
    """Ratios are Flower's number over that of the row, of the median seconds, the least and the CPU seconds."""
    kinds = ("seconds", "least_seconds", "cpu_seconds")
    print(f"{'system':29}{'updates':>8}{'seconds':>10}{'least':>10}{'CPU':>10}{'peak, MB':>10}   ratios")
    for row in rows:
        numbers = [float(str(row[kind])) for kind in kinds]
        peer = [r for r in rows if (r["system"], r["updates"]) == (FLOWER, row["updates"])]
        ratios = [float(str(peer[0][kind])) / own for kind, own in zip(kinds, numbers, strict=True)] if peer else []
        columns = "".join(f"{number:>10.4f}" for number in numbers) + f"{int(str(row['peak_bytes'])) / 1e6:>10.0f}"
        print(f"{row['system']:29}{row['updates']:>8}{columns}   {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    if left_out:
        print(f"left out: {left_out}")


if __name__ == "__main__":
    main()
