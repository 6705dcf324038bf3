"""Flower's own aggregation of dense updates, timed in its own environment: `python flower_mean.py UPDATES SIZE SEED`.

Writes one line of JSON: seconds of reading the messages and of adding them, and the largest resident size.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords


def main() -> None:
    """Aggregate once."""
    updates, size, seed = map(int, sys.argv[1:4])
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(size).astype(np.float32)
    records: list[RecordDict] = []
    arrived: list[bytes] = []
    for number in range(updates):
        array = Array(np.roll(vector, number))  # an own copy, serialised as it would have arrived
        metrics = MetricRecord({"num-examples": 100 + number})
        record = RecordDict({"arrays": ArrayRecord({"w": array}), "metrics": metrics})
        arrived.append(recorddict_to_proto(record).SerializeToString())
    began, computed = time.perf_counter(), time.process_time()
    while arrived:
        records.append(recorddict_from_proto(ProtoRecordDict.FromString(arrived.pop())))
    read = time.perf_counter() - began
    aggregate_arrayrecords(records, "num-examples")
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    largest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    peak = int(largest[1]) * 1024 if largest else 0
    print(json.dumps({"seconds": seconds, "cpu_seconds": computed, "adding_seconds": seconds - read, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
