"""What an update costs the device that writes it and the server that reads it: `python -m benchmarks.codec --json FILE`.

Model: the vector of `benchmarks.updates`, 1.66 million parameters; times are told for a million. *Encode* is all of `compress`:
the choice of coordinates, quantisation, coding, and what is left to send. In context it is measured twice: with a history of
which nothing has been computed yet, as on a device, which codes one update with it, and with one at hand, as on a server, which
reads a round's updates with it. `argpartition` is NumPy's, of the magnitudes of the same vector: the least that choosing them
costs.

Rule: everything is measured in turn, in CPU seconds of this one process; the table shows the median of the repetitions and the
least.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.updates import DEFAULT, SIZE, SPARSE, Fleet, again
from edgefl.codec.compress import Memory, compress
from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.codec.sparsify import Sparse, count_sent
from edgefl.codec.update import decode
from edgefl.layout import Float32

PARTITION = "argpartition"

Row = dict[str, object]
Work = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--repeat", type=int, default=15, metavar="N")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    fleet = Fleet.of(rng)
    rows = []
    for name, scheme in (("p = 0.01, 1 bit", SPARSE), ("default, p = 0.02, 4 bits", DEFAULT)):
        rows += _measured(name, scheme, fleet, given.repeat, rng)
    _print(rows)
    if given.json is not None:
        report = {"rows": rows, "size": SIZE, "numpy": np.__version__}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _measured(name: str, scheme: Scheme, fleet: Fleet, repeat: int, rng: np.random.Generator) -> list[Row]:
    """A row for each way of coding."""
    delta, memory, known = fleet.delta(rng), Memory.empty(SIZE, scheme), fleet.history
    magnitude, place = np.abs(delta), SIZE - count_sent(SIZE, scheme.sparsity)
    works: dict[str, Work] = {PARTITION: lambda: np.argpartition(magnitude, place)}
    lengths: dict[str, int] = {}
    ways: Mapping[str, Callable[[], History | None]] = {
        "plain": lambda: None,
        "in context": lambda: again(known),
        "in context, history at hand": lambda: known,
    }
    for way, history in ways.items():
        data = compress(delta, memory, scheme, history=history(), rng=rng).data
        lengths[way] = len(data)
        works[f"{way} encode"] = partial(_encode, delta, memory, scheme, history, rng)
        works[f"{way} decode"] = partial(_decode, data, history)
    seconds = _in_turn(works, repeat)
    return [_row(name, way, length, seconds) for way, length in lengths.items()]


def _encode(
    delta: Float32, memory: Memory, scheme: Scheme, history: Callable[[], History | None], rng: np.random.Generator
) -> bytes:
    return compress(delta, memory, scheme, history=history(), rng=rng).data


def _decode(data: bytes, history: Callable[[], History | None]) -> Sparse:
    return decode(data, SIZE, history())


def _in_turn(works: Mapping[str, Work], repeat: int) -> dict[str, list[float]]:
    """CPU seconds of each, `repeat` times; one more time before that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    return {name: found[1:] for name, found in seconds.items()}


def _row(scheme: str, way: str, length: int, seconds: Mapping[str, Sequence[float]]) -> Row:
    """Milliseconds for a million parameters, and what encoding costs in terms of `argpartition`."""
    row: Row = {"scheme": scheme, "way": way, "file_bytes": length}
    for name, found in (("encode", f"{way} encode"), ("decode", f"{way} decode"), (PARTITION, PARTITION)):
        row[f"{name}_ms"] = statistics.median(seconds[found]) * 1e9 / SIZE
        row[f"least_{name}_ms"] = min(seconds[found]) * 1e9 / SIZE
    pairs = zip(seconds[f"{way} encode"], seconds[PARTITION], strict=True)
    row["encode_to_argpartition"] = statistics.median(encode / partition for encode, partition in pairs)
    return row


def _print(rows: Sequence[Row]) -> None:
    """Median and, in brackets, least CPU milliseconds for a million parameters."""
    print(f"{'scheme':27}{'way':29}{'bytes':>7}{'encode, ms':>15}{'decode, ms':>15}{'argpartition':>15}{'ratio':>7}")
    for row in rows:
        times = [f"{row[f'{name}_ms']:.1f} ({row[f'least_{name}_ms']:.1f})" for name in ("encode", "decode", PARTITION)]
        columns = "".join(f"{text:>15}" for text in times)
        print(f"{row['scheme']:27}{row['way']:29}{row['file_bytes']:>7}{columns}{row['encode_to_argpartition']:>7.2f}")


if __name__ == "__main__":
    main()
