"""A fuzz target for the update decoder: `python tests/fuzz_update.py --inputs 2000000 --seed 1`.

Valid files of all three versions are damaged: bits flipped, bytes set, pieces cut out, doubled, exchanged with those of another
file, header fields overwritten, and in files of version 2 the checksum repaired afterwards, so that the damage gets behind it.
Each is read with the right history, another one or none. Whatever comes must be an UpdateError or a well-formed sparse vector,
in bounded time and memory. Any other outcome prints the input and ends with code 1.
"""

import argparse
import resource
import struct
import sys
import time
import tracemalloc
import warnings
import zlib
from dataclasses import dataclass

import numpy as np

from edgefl.codec.bits import BitReader
from edgefl.codec.classes import all_scores, classes
from edgefl.codec.compress import Memory, compress
from edgefl.codec.contextual import HEADER_LENGTH, _read_scorer
from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.codec.update import decode, max_length, needs_history
from edgefl.errors import UpdateError

SHAPES = (((1,),), ((4, 9), (4,)), ((12, 20), (12,), (5, 12)), ((7, 3, 3, 3), (7,), ()), ((90, 200), (90,)))
WATCHED = 2000
"""Every so many inputs, one is decoded under tracemalloc."""
WOUNDS = (0.4, 0.2, 0.08, 0.08, 0.08, 0.06, 0.1)
SLOW = 2.0
"""Seconds of computing that no input may take."""


@dataclass(frozen=True)
class Case:
    """A valid file and what reads it."""

    data: bytes
    history: History
    needed: bool


def history(shapes: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> History:
    """Weights that moved, here and there."""
    size = sum(int(np.prod(shape)) for shape in shapes)
    start, first, second = (rng.standard_normal(size).astype(np.float32) for _ in range(3))
    before = start + first * (rng.random(size) < 0.5)
    now = before + second**3 * (rng.random(size) < 0.3)
    return History(start, before, now, shapes if rng.random() < 0.8 else ())


def cases(rng: np.random.Generator, count: int = 160) -> list[Case]:
    """Valid files of all forms."""
    made = []
    while len(made) < count:
        known = history(SHAPES[rng.integers(len(SHAPES))], rng)
        delta = ((known.now - known.before) * 0.5 + rng.standard_normal(known.size) ** 3).astype(np.float32)
        dense = rng.random() < 0.2
        scheme = Scheme(
            sparsity=1.0 if dense else float(rng.choice([0.0005, 0.01, 0.05, 0.2, 0.4, 0.8])),
            bits=int(rng.integers(1, 9)),
            rotated=bool(dense and rng.random() < 0.7),
        )
        context = known if rng.random() < 0.7 else None
        data = compress(delta, Memory.empty(known.size, scheme), scheme, history=context, rng=rng).data
        made.append(Case(data, known, needs_history(data)))
    return made


def damage(case: Case, other: Case, rng: np.random.Generator) -> bytes:
    """The file with one to four wounds."""
    data = bytearray(case.data)
    for _ in range(min(4, int(rng.geometric(0.6)))):
        wound = int(rng.choice(7, p=WOUNDS))
        place = len(data) - 1 - int(len(data) * float(rng.random()) ** 2) if data else 0  # rather at the end than in the header
        if wound == 0 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif wound == 1 and data:
            data[place] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        elif wound == 2:
            del data[place : place + int(rng.integers(1, 9))]
        elif wound == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif wound == 4:
            cut = int(rng.integers(len(other.data)))
            data[place:] = other.data[cut:]
        elif wound == 5 and len(data) > 13:
            field, form = ((3, "<B"), (4, "<B"), (5, "<I"), (9, "<I"), (13, "<f"), (21, "<I"))[int(rng.integers(6))]
            value = (0, 1, 2, 3, 255)[int(rng.integers(5))] if form == "<B" else int(rng.integers(1 << int(rng.integers(1, 33))))
            wounded = struct.pack(form, value if form != "<f" else float(rng.choice([0, -1, 1e38, np.nan, np.inf])))
            data[field : field + len(wounded)] = wounded
        elif wound == 6:
            data[place:] = rng.bytes(int(rng.integers(40)))
    return repaired(bytes(data), case.history) if rng.random() < 0.8 else bytes(data)


def repaired(data: bytes, known: History) -> bytes:
    """A file of version 2 with the size and the checksum that its scorer gives."""
    if not needs_history(data) or len(data) <= HEADER_LENGTH:
        return data
    try:
        scorer = _read_scorer(BitReader(np.frombuffer(data, dtype=np.uint8)[HEADER_LENGTH:]), known)
    except UpdateError:
        return data
    checksum = zlib.crc32(classes(scorer, all_scores(scorer, known)).data)
    return data[:5] + struct.pack("<II", known.size, checksum) + data[13:]


def check(data: bytes, size: int, known: History | None) -> bool:
    """Whether the input was read; an AssertionError if what was read is not well-formed."""
    try:
        with warnings.catch_warnings(action="error"):
            sparse = decode(data, size, known)
    except UpdateError:
        return False
    assert sparse.size == size
    assert 1 <= len(sparse.positions) == len(sparse.values) <= size
    assert sparse.positions.dtype == np.int64
    assert sparse.values.dtype == np.float32
    assert sparse.positions[0] >= 0
    assert sparse.positions[-1] < size
    assert (np.diff(sparse.positions) > 0).all()
    assert np.isfinite(sparse.values).all()
    assert len(data) <= max_length(size)
    return True


def watched(data: bytes, size: int, known: History | None) -> bool:
    """`check`, with a bound on what it allocates: beside the fixed cost of small arrays, a multiple of the vector."""
    tracemalloc.start()
    read = check(data, size, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000 + 400 * size + 20 * len(data), f"{peak} bytes for {size} coordinates"
    return read


def run(inputs: int, seed: int, report: int = 0) -> tuple[int, float]:
    """Fuzz; returns how many inputs were read as updates, and the slowest in seconds."""
    rng = np.random.default_rng(seed)
    read, slowest, pool = 0, 0.0, cases(rng)
    for number in range(inputs):
        if number % 200_000 == 199_999:
            pool = cases(rng)
        case, other = (pool[int(rng.integers(len(pool)))] for _ in range(2))
        data = damage(case, other, rng)
        known = (case.history, case.history, case.history, other.history, None)[int(rng.integers(5))]
        began = time.process_time()
        try:
            read += (watched if number % WATCHED == 0 else check)(data, case.history.size, known)
        except Exception:
            print(f"seed {seed}, input {number}: {data.hex()}", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - began)
        if report and number % report == report - 1:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{number + 1} inputs, {read} read, slowest {slowest:.3f} s, peak {peak} MiB", flush=True)
    assert slowest < SLOW
    return read, slowest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(arguments.inputs, arguments.seed, report=100_000)
