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
from itertools import chain

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, count_to_bits, number_to_bits, pack
from edgefl.codec.classes import CLASSES, LIMIT, Scorer, Scores, Stages, all_scores, classes, stage_classes
from edgefl.codec.fixed import Bits, code_pieces
from edgefl.codec.grid import STAGES
from edgefl.codec.history import History, Levels
from edgefl.codec.pieces import gather, pieces, scatter
from edgefl.codec.plain import MAGIC
from edgefl.codec.ranks import by_class, masks_by_class
from edgefl.codec.sparsify import Sparse
from edgefl.codec.subsets import flags_of, read_flags, read_subset, write_flags, write_subset
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
DENSE = 8
"""Sets that hold at least one coordinate in so many are gone through by flags, smaller ones by members: the bits are the same."""


def write_contextual(positions: Index, quantised: Quantised, history: History, scorer: Scorer) -> bytes:
    """The file of version 2 of these positions, strictly increasing, and their values."""
    score = all_scores(scorer, history)
    checksum = zlib.crc32(classes(scorer, score).data)
    header = _HEADER.pack(MAGIC, VERSION, quantised.bits, history.size, checksum, quantised.low, quantised.high)
    where, what = _position_bits(positions, scorer, history, score), _value_bits(positions, quantised, history)
    return header + pack(chain(_scorer_bits(scorer), where, what))


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


def _flag_bits(flags: Bits) -> Iterator[Bits]:
    """The same of flags, of which those of members are set."""
    yield count_to_bits(int(np.count_nonzero(flags)))
    yield from write_flags(flags)


def _read_set(reader: BitReader, size: int) -> Bits:
    return read_flags(reader, reader.count(size), size)


def _position_bits(positions: Index, scorer: Scorer, history: History, score: Scores) -> Iterator[Bits]:
    """Stage by stage, for each class that has coordinates, from the most likely down: which of them are sent, by their rank."""
    sent = flags_of(positions, history.size)
    for stage in range(STAGES if scorer.stages else 1):
        here, of_class = stage_classes(scorer, history, score, stage, positions)
        yield from _rank_bits(sent if here is None else gather(sent, here), of_class)


def _rank_bits(sent: Bits, of_class: Levels) -> Iterator[Bits]:
    """Which of a stage's coordinates are sent, class by class, by their ranks in it."""
    if DENSE * int(np.count_nonzero(sent)) >= len(sent):
        for members in masks_by_class(of_class, CLASSES):
            yield from _flag_bits(gather(sent, members))
    else:
        ranks = np.flatnonzero(sent)
        of_sent = of_class[ranks]
        for number, listed in by_class(of_class, CLASSES):
            yield from _set_bits(listed.ranks(ranks[of_sent == number]), listed.size)


def _read_positions(reader: BitReader, scorer: Scorer, history: History, score: Scores) -> Index:
    sent, positions = np.zeros(history.size, dtype=np.bool_), np.empty(0, dtype=np.int64)
    for stage in range(STAGES if scorer.stages else 1):
        here, of_class = stage_classes(scorer, history, score, stage, positions)
        del positions
        found = _read_ranks(reader, of_class)
        if here is None:
            sent = found
        else:
            scatter(sent, here, found)
        del here, of_class, found
        positions = np.flatnonzero(sent)
    if len(positions) == 0:
        raise UpdateError("the update holds no coordinate")
    return positions


def _read_ranks(reader: BitReader, of_class: Levels) -> Bits:
    """Which of a stage's coordinates are sent."""
    sent = np.zeros(len(of_class), dtype=np.bool_)
    for number, members in by_class(of_class, CLASSES):
        count = reader.count(members.size)
        if DENSE * count >= len(sent):
            scatter(sent, of_class == number, read_flags(reader, count, members.size))
        else:
            sent[members.at(read_subset(reader, count, members.size))] = True
    return sent


def _guesses(positions: Index, history: History) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """For each sent coordinate: whether its value is guessed to be negative, and the group that the guess belongs to."""
    guess, group = np.empty(len(positions), dtype=np.bool_), np.empty(len(positions), dtype=np.uint8)
    for piece in pieces(len(positions)):
        places = positions[piece]
        now = history.now[places]
        last, whole = _direction(now, history.before[places]), _direction(now, history.start[places])
        guess[piece] = whole < 0
        group[piece] = np.where(whole == 0, 0, np.where(last == 0, 1, np.where(last == whole, 2, 3)))
    return guess, group


def _direction(now: Float32, then: Float32) -> npt.NDArray[np.int8]:
    """1, 0 or -1; by comparison, because a difference could be flushed to zero."""
    return (now > then).astype(np.int8) - (now < then).astype(np.int8)


def _value_bits(positions: Index, quantised: Quantised, history: History) -> Iterator[Bits]:
    """Wrong guesses of signs, group by group; then the levels."""
    guess, group = _guesses(positions, history)
    wrong = (quantised.codes >> np.uint8(quantised.bits - 1)).view(np.bool_)
    wrong ^= guess
    for number in range(GROUPS):
        flags = gather(wrong, group == number)
        if len(flags):
            yield from _flag_bits(flags)
    del guess, group, wrong
    levels = quantised.codes & np.uint8((1 << (quantised.bits - 1)) - 1)
    yield from _level_bits(levels, quantised.bits - 1)


def _level_bits(levels: Levels, width: int) -> Iterator[Bits]:
    coded = min(width, CODED_BITS)
    for depth in range(coded):
        bit = ((levels >> np.uint8(width - 1 - depth)) & np.uint8(1)).view(np.bool_)
        prefixes = levels >> np.uint8(width - depth)
        for prefix in range(1 << depth):
            flags = gather(bit, prefixes == prefix)
            if len(flags):
                yield from _flag_bits(flags)
    yield from code_pieces(levels & np.uint8((1 << (width - coded)) - 1), width - coded)


def _read_values(reader: BitReader, positions: Index, bits: int, history: History) -> Levels:
    negative, group = _guesses(positions, history)
    for number in range(GROUPS):
        members = group == number
        if members.any():
            wrong = _read_set(reader, int(np.count_nonzero(members)))
            scatter(negative, members, gather(negative, members) ^ wrong)
    del group
    codes = _read_levels(reader, len(positions), bits - 1)
    codes |= negative.view(np.uint8) << np.uint8(bits - 1)
    return codes


def _read_levels(reader: BitReader, count: int, width: int) -> Levels:
    coded = min(width, CODED_BITS)
    levels = np.zeros(count, dtype=np.uint8)
    for depth in range(coded):
        bit = np.zeros(count, dtype=np.bool_)
        for prefix in range(1 << depth):
            members = levels == prefix
            if members.any():
                scatter(bit, members, _read_set(reader, int(np.count_nonzero(members))))
        levels <<= np.uint8(1)
        levels |= bit.view(np.uint8)
    rest = width - coded
    levels <<= np.uint8(rest)
    levels |= reader.codes(count, rest).astype(np.uint8, copy=False)
    return levels
