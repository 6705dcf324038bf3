"""Classes of coordinates that are about equally likely to be sent.

Model: each coordinate has a score, the sum of what its levels (`edgefl.codec.history`), its tensor and, in a later stage of the
update, its row and column (`edgefl.codec.grid`) say, in 1/64 octaves of the odds. A class is one octave of the score. Inside a
class all coordinates are treated alike, which costs about half a per cent of the positions' bits against exact odds. The encoder
chooses the numbers that say what a level is worth (`edgefl.codec.fitting`) and sends them, a dozen bytes.

Rules: integers only; the same scorer and history give the same classes on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgefl.codec.fixed import Bits
from edgefl.codec.history import LEVELS, History, Levels
from edgefl.codec.pieces import gather, pieces
from edgefl.layout import Index

Scores = npt.NDArray[np.int16] | npt.NDArray[np.int32]
"""The shorter type where no score can leave it: half the memory to go through."""

_SHIFT = 6
UNIT = 1 << _SHIFT
"""Steps of the score in an octave of the odds."""
CLASSES = 24
LIMIT = 4095
"""Largest magnitude of every number in a scorer."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the update says about itself while it is read, from -LIMIT to LIMIT.

    Attributes:
        first: score of each coordinate of stage 0, where nothing is known yet.
        row: score of one level of how busy the row is, in later stages.
        column: the same for the column.
    """

    first: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Scorer:
    """What levels and tensors are worth; every number is from -LIMIT to LIMIT.

    Attributes:
        floor: octave of the score that class 0 ends with.
        slopes: score of one step of each kind of level.
        absences: score of a level 0 of each kind.
        stages: None if all coordinates are coded in one stage.
        tensors: score of each tensor; empty if all are equal.
    """

    floor: int
    slopes: tuple[int, ...]
    absences: tuple[int, ...]
    stages: Stages | None = None
    tensors: tuple[int, ...] = ()


def scores(scorer: Scorer, levels: Sequence[Levels], tensors: Iterable[slice] = ()) -> Scores:
    """What levels and tensors say, for each of some coordinates.

    Args:
        scorer: what they are worth.
        levels: of the coordinates, one array for each kind.
        tensors: where among them each tensor lies, if the scorer looks at that.
    """
    most = sum(abs(slope) * LEVELS + abs(absence) for slope, absence in zip(scorer.slopes, scorer.absences, strict=True))
    wide = most + max(map(abs, scorer.tensors), default=0) >= 1 << 15
    size = len(levels[0])
    score: Scores = np.zeros(size, dtype=np.int32) if wide else np.zeros(size, dtype=np.int16)
    for kind, slope, absence in zip(levels, scorer.slopes, scorer.absences, strict=True):
        if slope:
            score += np.multiply(kind, slope, dtype=score.dtype)
        if absence:
            score += np.multiply((kind == 0).view(np.uint8), absence, dtype=score.dtype)
    if scorer.tensors:
        for place, worth in zip(tensors, scorer.tensors, strict=True):
            score[place] += worth
    return score


def all_scores(scorer: Scorer, history: History) -> Scores:
    """What levels and tensors say of every coordinate, shape `(n,)`."""
    starts = history.grid.starts if scorer.tensors else ()
    return scores(scorer, history.levels, [slice(a, b) for a, b in pairwise(starts)])


def classes(scorer: Scorer, score: Scores) -> Levels:
    """The classes of these scores, uint8, below `CLASSES`."""
    found = np.empty(len(score), dtype=np.uint8)
    for piece in pieces(len(score)):
        octave = score[piece] >> _SHIFT
        octave -= scorer.floor
        found[piece] = np.clip(octave, 0, CLASSES - 1, out=octave)
    return found


def stage_classes(scorer: Scorer, history: History, score: Scores, stage: int, sent: Index) -> tuple[Bits | None, Levels]:
    """Which coordinates are of a stage, shape `(n,)` (None if all are), and the class of each of these, uint8.

    Args:
        scorer: with or without stages; without there is only stage 0, which has all coordinates.
        history: what both ends know.
        score: what `all_scores` says.
        stage: from 0.
        sent: coordinates that are sent, at least all of the stages before.
    """
    if scorer.stages is None:
        return None, classes(scorer, score)
    here = history.grid.stage == stage
    if stage == 0:
        of_stage: Scores = np.add(gather(score, here), scorer.stages.first, dtype=np.int32)
    else:
        of_stage = gather(_busy(scorer.stages, history, stage, sent, score), here)
    return here, classes(scorer, of_stage)


def _busy(stages: Stages, history: History, stage: int, sent: Index, own: Scores) -> npt.NDArray[np.int32]:
    """What rows and columns say of every coordinate, added to what it has of its own."""
    grid = history.grid
    rows, columns = grid.shares(sent, stage)
    rows, columns = rows * stages.row, columns * stages.column
    score = np.empty(history.size, dtype=np.int32)
    row = column = 0
    for (start, end), height, width in zip(pairwise(grid.starts), grid.heights, grid.widths, strict=True):
        table = score[start:end].reshape(height, width)
        np.add(rows[row : row + height, None], columns[column : column + width], out=table)
        row, column = row + height, column + width
    score += own
    return score
