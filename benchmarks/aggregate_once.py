"""edgefl's aggregation, timed once: `python -m benchmarks.aggregate_once UPDATES DIRECTORY`.

DIRECTORY holds encoded updates and, if they are coded in context, the weights of their history. Writes one line of JSON:
seconds of decoding and adding them all and of the mean, and the largest resident size.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.updates import SHAPES, SIZE
from edgefl.aggregate.robust import Streaming
from edgefl.codec.history import History
from edgefl.codec.update import decode


def main() -> None:
    """Decode, fold and finish."""
    updates, directory = int(sys.argv[1]), Path(sys.argv[2])
    files = [path.read_bytes() for path in sorted(directory.glob("*.efu"))]
    known = directory / "history.npy"
    vectors = list(np.load(known)) if known.exists() else []
    began, computed = time.perf_counter(), time.process_time()
    history = History(vectors[0], vectors[1], vectors[2], SHAPES) if vectors else None
    aggregator = Streaming(SIZE)
    for number in range(updates):
        aggregator.add(decode(files[number % len(files)], SIZE, history), None, 100.0 + number, key="w", device=str(number))
    aggregator.result()
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    largest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    peak = int(largest[1]) * 1024 if largest else 0
    length = sum(map(len, files)) / len(files)
    print(json.dumps({"seconds": seconds, "cpu_seconds": computed, "peak_bytes": peak, "file_bytes": length}))


if __name__ == "__main__":
    main()
