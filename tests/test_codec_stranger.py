"""Updates read by a second decoder, written from docs/update-format.md alone, one bit and one coordinate at a time."""

import heapq
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import make_updates as make
from edgefl.codec.centroids import POSITIVE
from edgefl.codec.compress import Memory, compress
from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.codec.update import decode, needs_history

HERE = Path(__file__).parent / "golden"


class Bits:
    """The bits of some bytes, from the front."""

    def __init__(self, data: bytes) -> None:
        """All of them, as text."""
        self.text = "".join(f"{byte:08b}" for byte in data)

    def take(self, count: int) -> str:
        """The next bits."""
        found, self.text = self.text[:count], self.text[count:]
        assert len(found) == count
        return found

    def count(self) -> int:
        """Exponential Golomb, order 4."""
        zeros = self.text.index("1")
        return int(self.take(2 * zeros + 5), 2) - 16

    def number(self) -> int:
        """Folded: 0, -1, 1, -2, 2."""
        folded = self.count()
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def set(self, size: int) -> list[int]:
        """A count and so many members."""
        count = self.count()
        coded = size - count if 2 * count > size else count
        if coded == 0:
            members = []
        elif 4 * coded < size:
            members = self.gaps(coded, max(1, math.ceil((45426 * size - 55482 * coded) / (65536 * coded))))
        else:
            members = self.blocks(coded, size)
        return members if coded == count and 2 * count <= size else sorted(set(range(size)) - set(members))

    def gaps(self, count: int, divisor: int) -> list[int]:
        """Golomb's code in three streams."""
        width = divisor.bit_length() - 1
        short = 2 ** (width + 1) - divisor
        remainders = [int(self.take(width) or "0", 2) for _ in range(count)]
        remainders = [r if r < short else 2 * r + int(self.take(1)) - short for r in remainders]
        place, members = -1, []
        for remainder in remainders:
            zeros = self.text.index("1")
            self.take(zeros + 1)
            place += zeros * divisor + remainder + 1
            members.append(place)
        return members

    def blocks(self, count: int, size: int) -> list[int]:
        """Five bits at a time, by the nodes of a Huffman tree."""
        heap = [(count ** v.bit_count() * (size - count) ** (5 - v.bit_count()), v, v) for v in range(32)]
        heapq.heapify(heap)
        for number in range(32, 63):
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (first[0] + second[0], number, (first[2], second[2])))
        symbols = dict(self.below(heap[0][2], list(range(-(-size // 5)))))
        bitmap = "".join(f"{symbols[block]:05b}" for block in sorted(symbols))
        return [place for place, bit in enumerate(bitmap) if bit == "1"]

    def below(self, node: object, blocks: list[int]) -> list[tuple[int, int]]:
        """Blocks and their symbols under a node."""
        if isinstance(node, int):
            return [(block, node) for block in blocks]
        bits = self.take(len(blocks))
        zero = self.below(node[0], [block for block, bit in zip(blocks, bits, strict=True) if bit == "0"])
        return zero + self.below(node[1], [block for block, bit in zip(blocks, bits, strict=True) if bit == "1"])


def half(number: int) -> int:
    """Half octaves."""
    if number == 0:
        return -16
    digits = f"{number:b}0"
    return 2 * (len(digits) - 2) + int(digits[1])


def own(moves: list[float]) -> list[int]:
    """Own levels."""
    halves = [(struct.unpack("<I", struct.pack("<f", d))[0] >> 22) & 511 for d in moves]
    largest = max(96, *halves)
    return [max(0, 32 - (largest - h)) for h in halves]


def crossings(shapes: tuple[tuple[int, ...], ...]) -> list[tuple[int, int, int]]:
    """Tensor, row and column of each coordinate."""
    found = []
    for tensor, shape in enumerate(shapes):
        height = shape[0] if shape else 1
        width = math.prod(shape) // height
        found += [(tensor, i // width, i % width) for i in range(height * width)]
    return found


def outer(moves: list[float], cross: list[tuple[int, int, int]]) -> list[int]:
    """Outer levels."""
    e = max(-78, math.frexp(max(abs(d) for d in moves))[1])
    rows, columns, tensors = {}, {}, {}
    for d, (t, r, c) in zip(moves, cross, strict=True):
        q = math.floor(abs(d) * 2.0 ** (24 - e))
        rows[t, r] = rows.get((t, r), 0) + q
        columns[t, c] = columns.get((t, c), 0) + q
        tensors[t] = tensors.get(t, 0) + q
    return [min(63, max(0, half(rows[t, r]) - half(tensors[t]) + half(columns[t, c]))) for t, r, c in cross]


def stage(i: int) -> int:
    """Of a coordinate."""
    x = i * 0x9E3779B1 % 2**32
    x = (x ^ (x >> 15)) * 0x85EBCA77 % 2**32
    return (0, 1, 1, 1, 2, 2, 2, 2)[x >> 29]


def read_in_context(data: bytes, known: History) -> dict[int, float]:
    """Version 2."""
    size, checksum, low, high = struct.unpack("<IIff", data[5:21])
    width, bits = data[4] - 1, Bits(data[21:])
    moves = [(known.now - x).tolist() for x in (known.before, known.start)]
    cross = crossings(known.shapes)
    levels = [own(d) for d in moves] + [outer(d, cross) for d in moves if known.shapes]
    floor, *worths = [bits.number() for _ in range(1 + 2 * len(levels))]
    slopes, absences = worths[: len(levels)], worths[len(levels) :]
    first, row, column = [bits.number() for _ in range(3)] if (staged := bits.take(1) == "1") else (0, 0, 0)
    tensors = [bits.number() for _ in known.shapes] if bits.take(1) == "1" else [0] * len(known.shapes)
    score = [
        sum(s * level[i] if level[i] else a for s, a, level in zip(slopes, absences, levels, strict=True)) for i in range(size)
    ]
    score = [s + (tensors[cross[i][0]] if cross else 0) for i, s in enumerate(score)]
    assert zlib.crc32(bytes(min(23, max(0, s // 64 - floor)) for s in score)) == checksum
    sent: list[int] = []
    for now in range(3 if staged else 1):
        worth = score
        if staged:
            worth = [s + (first if now == 0 else busy(i, sent, cross, now, row, column)) for i, s in enumerate(score)]
        of_class = {i: min(23, max(0, s // 64 - floor)) for i, s in enumerate(worth) if not staged or stage(i) == now}
        found = []
        for number in reversed(range(24)):
            members = [i for i, c in of_class.items() if c == number]
            found += [members[rank] for rank in bits.set(len(members))] if members else []
        sent = sorted(sent + found)
    return dict(zip(sent, read_values(bits, sent, known, width, low, high), strict=True))


def busy(i: int, sent: list[int], cross: list[tuple[int, int, int]], now: int, row: int, column: int) -> int:
    """What the stages before say of a coordinate."""
    here, total = cross[i], 0
    for axis, worth in ((1, row), (2, column)):
        count = sum(cross[j][0] == here[0] and cross[j][axis] == here[axis] for j in sent)
        length = sum(c[0] == here[0] and c[axis] == here[axis] for c in cross)
        total += worth * max(1, 40 + (0, 6, 2)[now] + half(2 * count + 1) - half(2 * length))
    return total


def read_values(bits: Bits, sent: list[int], known: History, width: int, low: float, high: float) -> list[float]:
    """Signs and levels of version 2."""
    negative = [known.now[i] < known.start[i] for i in sent]
    groups: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}
    for rank, i in enumerate(sent):
        start, before, now = known.start[i], known.before[i], known.now[i]
        group = 0 if now == start else 1 if now == before else 2 if (before < now) == (start < now) else 3
        groups[group].append(rank)
    for group in range(4):
        for place in bits.set(len(groups[group])) if groups[group] else []:
            negative[groups[group][place]] ^= True
    levels = [0] * len(sent)
    for depth in range(min(4, width)):
        ones = []
        for prefix in range(2**depth):
            members = [rank for rank, level in enumerate(levels) if level == prefix]
            ones += [members[place] for place in bits.set(len(members))] if members else []
        levels = [2 * level + (rank in ones) for rank, level in enumerate(levels)]
    levels = [(level << max(0, width - 4)) + int(bits.take(max(0, width - 4)) or "0", 2) for level in levels]
    assert len(bits.text) < 8
    assert "1" not in bits.text
    step = (high - low) / (2**width - 1) if width else 0.0
    magnitudes = [min(low + step * level, high) for level in levels]
    return [-m if n else m for m, n in zip(magnitudes, negative, strict=True)]


def read_rotated(data: bytes) -> list[float]:
    """Version 3."""
    size, seed = struct.unpack("<IQ", data[5:17])
    lengths = [65536] * (size // 65536) + [2**k for k in range(15, -1, -1) if size % 65536 >> k & 1]
    scales = struct.unpack(f"<{len(lengths)}f", data[17 : 17 + 4 * len(lengths)])
    bits = Bits(data[17 + 4 * len(lengths) :])
    centroids = [-c for c in reversed(POSITIVE[data[4] - 1])] + list(POSITIVE[data[4] - 1])
    values: list[float] = []
    for length, scale in zip(lengths, scales, strict=True):
        block = [centroids[int(bits.take(data[4]), 2)] for _ in range(length)]
        values += [scale * sum(c * (-1) ** (i & j).bit_count() for j, c in enumerate(block)) for i in range(length)]
    return [v * sign(seed, i) for i, v in enumerate(values)]


def sign(seed: int, i: int) -> int:
    """Of a coordinate."""
    x = (seed + (i // 64 + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return -1 if (x ^ (x >> 31)) >> (63 - i % 64) & 1 else 1


@pytest.mark.parametrize("name", sorted(make.CONTEXTUAL))
def test_a_stranger_reads_golden_updates_in_context(name: str) -> None:
    """The document is enough to read version 2, to the last bit."""
    data, known = (HERE / f"{name}.bin").read_bytes(), make.history(make.CONTEXTUAL[name][0])
    ours, theirs = decode(data, 1000, known), read_in_context(data, known)
    assert list(theirs) == ours.positions.tolist()
    np.testing.assert_array_equal(np.array(list(theirs.values())).astype(np.float32), ours.values)


@pytest.mark.parametrize("name", sorted(make.ROTATED))
def test_a_stranger_reads_golden_rotated_updates(name: str) -> None:
    """The document is enough to read version 3, to the last bit."""
    data, size = (HERE / f"{name}.bin").read_bytes(), make.ROTATED[name][0]
    np.testing.assert_array_equal(np.array(read_rotated(data)).astype(np.float32), decode(data, size).values)


@pytest.mark.parametrize("seed", range(6))
def test_a_stranger_reads_what_the_encoder_makes(seed: int) -> None:
    """Also files whose scorer was fitted, of tensors with any number of axes."""
    rng = np.random.default_rng(seed)
    shapes = ((20, 5, 4), (20,), (), (8, 20))
    start, step, last = (rng.standard_normal(581).astype(np.float32) ** 5 for _ in range(3))
    before = start + step * (rng.random(581) < 0.15)
    known = History(start, before, before + last * (rng.random(581) < 0.15), shapes if seed % 2 else ())
    delta = ((known.now - start) * rng.standard_normal(581)).astype(np.float32)
    scheme = Scheme(0.15, 1 + seed)
    data = compress(delta, Memory.empty(581, scheme), scheme, history=known, rng=rng).data
    assert needs_history(data)
    ours, theirs = decode(data, 581, known), read_in_context(data, known)
    assert list(theirs) == ours.positions.tolist()
    np.testing.assert_array_equal(np.array(list(theirs.values())).astype(np.float32), ours.values)
