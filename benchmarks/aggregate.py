"""What a round costs the server, beside Flower's aggregation: `python -m benchmarks.aggregate --json FILE`.

Model: N updates of a model of 1.66 million parameters. edgefl decodes N encoded updates (p = 0.01, ternary), folds each into the
streaming mean and takes the result; Flower, in an environment of its own, reads N messages with a dense vector each and adds them
(`recorddict_from_proto`, `aggregate_arrayrecords`; the adding alone is told apart). Each measurement is a process of its own; its
memory is its largest resident size. Flower's grows with N: what would not fit `--limit` is left out and said.

Rule: both sides begin with the bytes that have arrived, and end with the mean; neither pays for its transport.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from benchmarks.uplink_peers import Peer, install
from benchmarks.uplink_result import LeftOutError
from edgefl.aggregate.robust import Streaming
from edgefl.codec.compress import Memory, compress
from edgefl.codec.scheme import Scheme
from edgefl.codec.update import decode

SIZE = 1_663_370
SCHEME = Scheme(sparsity=0.01, bits=1)
DISTINCT = 20
"""Encoded updates that differ; more would only fill the benchmark's memory."""

Row = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, print a table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--updates", nargs="+", type=int, default=[100, 1000], metavar="N")
    parser.add_argument("--size", type=int, default=SIZE, metavar="N", help="parameters of the model")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--limit", type=float, default=8.0, metavar="GB", help="memory that Flower may need")
    parser.add_argument("--peers", type=Path, default=Path(gettempdir()) / "edgefl-peers", help="where Flower is installed")
    parser.add_argument("--without-flower", action="store_true")
    parser.add_argument("--child", type=int, metavar="N", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(json.dumps(aggregated(given.child, given.size)))
        return
    flower, left_out = (None, "not asked for") if given.without_flower else _flower(given.peers)
    rows: list[Row] = []
    for updates in given.updates:
        rows.append(_row("edgefl", updates, [_edgefl(updates, given.size) for _ in range(given.repeat)]))
        needed = updates * given.size * 4 / 1e9
        if flower is not None and needed <= given.limit:
            rows.append(_row("Flower", updates, [_of_flower(flower, updates, given.size) for _ in range(given.repeat)]))
        elif flower is not None:
            left_out = f"{updates} dense vectors are {needed:.1f} GB, above the limit of {given.limit:g}"
    _print(rows, left_out)
    if given.json is not None:
        report = {"rows": rows, "size": given.size, "left_out": left_out, "flower": flower.version if flower else None}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def aggregated(updates: int, size: int) -> Row:
    """Decode, fold and finish once, in this process."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(min(updates, DISTINCT)):
        delta = (rng.standard_normal(size) ** 3).astype(np.float32)
        files.append(compress(delta, Memory.empty(size, SCHEME), SCHEME, rng=rng).data)
    del delta
    before = _peak()
    began = time.perf_counter()
    aggregator = Streaming(size)
    for number in range(updates):
        aggregator.add(decode(files[number % len(files)], size), None, 100.0 + number, key="w", device=str(number))
    aggregator.result()
    return {"seconds": time.perf_counter() - began, "peak_bytes": _peak(), "peak_bytes_before": before}


def _edgefl(updates: int, size: int) -> Row:
    return _child([sys.executable, "-m", "benchmarks.aggregate", "--child", str(updates), "--size", str(size)])


def _of_flower(flower: Peer, updates: int, size: int) -> Row:
    script = Path(__file__).parent / "peers" / "flower_mean.py"
    return _child([str(flower.program("python")), str(script), str(updates), str(size), "0"])


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


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


def _row(system: str, updates: int, found: Sequence[Row]) -> Row:
    seconds = statistics.median(float(str(item["seconds"])) for item in found)
    row: Row = {"system": system, "updates": updates, "seconds": seconds}
    row["peak_bytes"] = max(int(str(item["peak_bytes"])) for item in found)
    if "adding_seconds" in found[0]:
        row["adding_seconds"] = statistics.median(float(str(item["adding_seconds"])) for item in found)
    return row


def _print(rows: Sequence[Row], left_out: str) -> None:
    print(f"{'system':10}{'updates':>9}{'seconds':>10}{'ms/update':>11}{'peak, MB':>10}{'ratio':>8}")
    for row in rows:
        seconds, updates = float(str(row["seconds"])), int(str(row["updates"]))
        peak = int(str(row["peak_bytes"])) / 1e6
        own = next(float(str(r["seconds"])) for r in rows if (r["system"], r["updates"]) == ("edgefl", updates))
        print(f"{row['system']:10}{updates:>9}{seconds:>10.3f}{seconds / updates * 1e3:>11.2f}{peak:>10.0f}{seconds / own:>8.1f}")
    if left_out:
        print(f"left out: {left_out}")


if __name__ == "__main__":
    main()
