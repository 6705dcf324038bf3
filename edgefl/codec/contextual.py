"""An update in the context of the model's history: format version 2, described bit by bit in docs/update-format.md.

Model: the coordinates are put into classes (`edgefl.codec.classes`); each class has its own number of sent coordinates and its
own code for where among the class they are, so that the length is the conditional entropy of the positions given the class. A
sent value's sign is guessed to be that of the way from `start` to `now`, and it is the wrong guesses that are coded, in groups:
no way at all, no last move, a last move the same way, a last move the other way. Levels of magnitudes are coded from their first
bit down, each bit among the values with equal bits before it (a wavelet tree). All of it is "k of n" (`edgefl.codec.subsets`).

Rules: as in version 1, and: a checksum of the classes tells a reader whose history differs by a bit.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, count_to_bits, number_to_bits, pack
from edgefl.codec.classes import CLASSES, LIMIT, Scorer, Scores, Stages, all_scores, classes, stage_classes
from edgefl.codec.fixed import Bits, codes_to_bits
from edgefl.codec.grid import STAGES
from edgefl.codec.history import History, Levels
from edgefl.codec.plain import MAGIC
from edgefl.codec.ranks import by_class
from edgefl.codec.sparsify import Sparse
from edgefl.codec.subsets import read_subset, write_subset
from edgefl.codec.values import Quantised, check_scale, dequantise
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index

VERSION = 2
_HEADER = struct.Struct("<3sBBIIff")
HEADER_LENGTH = _HEADER.size
"""21 bytes: magic, version, bits, size, checksum of the classes, low, high."""
CODED_BITS = 4
"""First bits of a level that are coded; those after them are close to random and are written as they are."""

GROUPS = 4


def write_contextual(positions: Index, quantised: Quantised, history: History, scorer: Scorer) -> bytes:
    """The file of version 2 of these positions, strictly increasing, and their values."""
    score = all_scores(scorer, history)
    checksum = zlib.crc32(classes(scorer, score).data)
    header = _HEADER.pack(MAGIC, VERSION, quantised.bits, history.size, checksum, quantised.low, quantised.high)
    body = [
        *_scorer_bits(scorer),
        *_position_bits(positions, scorer, history, score),
        *_value_bits(positions, quantised, history),
    ]
    return header + pack(body)


def read_contextual(data: bytes, expected_size: int, history: History | None) -> Sparse:
    """The update of `expected_size` coordinates in these bytes, which begin with magic and version.

    Raises:
        UpdateError: no history or another one than the encoder's, or bytes that are no such file.
    """
    if history is None:
        raise UpdateError(
            "this update can only be read with the history of its model", remedy="Keep the weights of recent rounds"
        )
    if len(data) < HEADER_LENGTH:
        raise UpdateError("update is truncated", expected=f"{HEADER_LENGTH} bytes or more", found=str(len(data)))
    _, _, bits, size, checksum, low, high = _HEADER.unpack_from(data)
    if not size == expected_size == history.size:
        found = f"{size}, with a history of {history.size}"
        raise UpdateError("update of another model", expected=f"{expected_size} coordinates", found=found)
    check_scale(bits, low, high)
    reader = BitReader(np.frombuffer(data, dtype=np.uint8)[HEADER_LENGTH:])
    scorer = _read_scorer(reader, history)
    score = all_scores(scorer, history)
    if zlib.crc32(classes(scorer, score).data) != checksum:
        raise UpdateError("the update was coded against another history", remedy="Keep the weights that the order names")
    positions = _read_positions(reader, scorer, history, score)
    codes = _read_values(reader, positions, bits, history)
    reader.end()
    return Sparse(positions, dequantise(codes, low, high, bits), size)


def _scorer_bits(scorer: Scorer) -> Iterator[Bits]:
    for number in (scorer.floor, *scorer.slopes, *scorer.absences):
        yield number_to_bits(number)
    yield np.array([scorer.stages is not None])
    if scorer.stages is not None:
        for number in (scorer.stages.first, scorer.stages.row, scorer.stages.column):
            yield number_to_bits(number)
    yield np.array([bool(scorer.tensors)])
    for number in scorer.tensors:
        yield number_to_bits(number)


def _read_scorer(reader: BitReader, history: History) -> Scorer:
    kinds = len(history.levels)
    numbers = [reader.number(LIMIT) for _ in range(1 + 2 * kinds)]
    stages = Stages(*(reader.number(LIMIT) for _ in range(3))) if reader.take(1)[0] else None
    by_tensor = bool(reader.take(1)[0])
    if not history.shapes and (stages or by_tensor):
        raise UpdateError("the update was coded with the tensors' shapes", remedy="Give the history its shapes")
    tensors = tuple(reader.number(LIMIT) for _ in history.shapes) if by_tensor else ()
    return Scorer(numbers[0], tuple(numbers[1 : 1 + kinds]), tuple(numbers[1 + kinds :]), stages, tensors)


def _set_bits(members: Index, size: int) -> list[Bits]:
    """A set's number of members and the set."""
    return [count_to_bits(len(members)), *write_subset(members, size)]


def _read_set(reader: BitReader, size: int) -> Index:
    return read_subset(reader, reader.count(size), size)


def _position_bits(positions: Index, scorer: Scorer, history: History, score: Scores) -> Iterator[Bits]:
    """Stage by stage, for each class that has coordinates, from the most likely down: which of them are sent, by their rank."""
    of_stage = history.grid.stage[positions] if scorer.stages else np.zeros(len(positions), dtype=np.uint8)
    for stage in range(STAGES if scorer.stages else 1):
        here, of_class = stage_classes(scorer, history, score, stage, positions[of_stage < stage])
        sent = positions[of_stage == stage]
        ranks = sent if here is None else np.searchsorted(here, sent)
        of_sent = of_class[ranks]
        for number, members in by_class(of_class, CLASSES):
            yield from _set_bits(members.ranks(ranks[of_sent == number]), members.size)


def _read_positions(reader: BitReader, scorer: Scorer, history: History, score: Scores) -> Index:
    sent, positions = np.zeros(history.size, dtype=np.bool_), np.empty(0, dtype=np.int64)
    for stage in range(STAGES if scorer.stages else 1):
        here, of_class = stage_classes(scorer, history, score, stage, positions)
        for _, members in by_class(of_class, CLASSES):
            ranks = members.at(_read_set(reader, members.size))
            sent[ranks if here is None else here[ranks]] = True
        positions = np.flatnonzero(sent)
    if len(positions) == 0:
        raise UpdateError("the update holds no coordinate")
    return positions


def _guesses(positions: Index, history: History) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """For each sent coordinate: whether its value is guessed to be negative, and the group that the guess belongs to."""
    now = history.now[positions]
    last, whole = _direction(now, history.before[positions]), _direction(now, history.start[positions])
    group = np.where(whole == 0, 0, np.where(last == 0, 1, np.where(last == whole, 2, 3))).astype(np.uint8)
    return whole < 0, group


def _direction(now: Float32, then: Float32) -> npt.NDArray[np.int8]:
    """1, 0 or -1; by comparison, because a difference could be flushed to zero."""
    return (now > then).astype(np.int8) - (now < then).astype(np.int8)


def _value_bits(positions: Index, quantised: Quantised, history: History) -> Iterator[Bits]:
    """Wrong guesses of signs, group by group; then the levels."""
    guess, group = _guesses(positions, history)
    wrong = (quantised.codes >> np.uint8(quantised.bits - 1)).astype(np.bool_) ^ guess
    for number in range(GROUPS):
        flags = wrong[group == number]
        if len(flags):
            yield from _set_bits(np.flatnonzero(flags), len(flags))
    levels = quantised.codes & np.uint8((1 << (quantised.bits - 1)) - 1)
    yield from _level_bits(levels, quantised.bits - 1)


def _level_bits(levels: Levels, width: int) -> Iterator[Bits]:
    coded = min(width, CODED_BITS)
    for depth in range(coded):
        bit = (levels >> np.uint8(width - 1 - depth)) & np.uint8(1)
        for prefix in range(1 << depth):
            flags = bit[levels >> np.uint8(width - depth) == prefix]
            if len(flags):
                yield from _set_bits(np.flatnonzero(flags), len(flags))
    yield codes_to_bits(levels & np.uint8((1 << (width - coded)) - 1), width - coded)


def _read_values(reader: BitReader, positions: Index, bits: int, history: History) -> npt.NDArray[np.int64]:
    guess, group = _guesses(positions, history)
    negative = guess.copy()
    for number in range(GROUPS):
        places = np.flatnonzero(group == number)
        if len(places):
            wrong = places[_read_set(reader, len(places))]
            negative[wrong] = ~guess[wrong]
    return (negative.astype(np.int64) << (bits - 1)) | _read_levels(reader, len(positions), bits - 1)


def _read_levels(reader: BitReader, count: int, width: int) -> npt.NDArray[np.int64]:
    coded = min(width, CODED_BITS)
    levels = np.zeros(count, dtype=np.int64)
    for depth in range(coded):
        bit = np.zeros(count, dtype=np.int64)
        for prefix in range(1 << depth):
            places = np.flatnonzero(levels == prefix)
            if len(places):
                bit[places[_read_set(reader, len(places))]] = 1
        levels = 2 * levels + bit
    rest = width - coded
    return (levels << rest) | reader.codes(count, rest)
