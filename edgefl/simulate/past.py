"""The weights of recent rounds, in files: what updates are read against, and what workers still train from.

Model: each structure has weights of its own in every round.
"""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgefl.layout import Float32

_HELD = 16


class Past:
    """Weights by structure and round, of one simulation."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="edgefl-past-")
        self._kept: set[int] = set()
        self.weights = lru_cache(_HELD)(self._weights)

    def add(self, kind: int, number: int, weights: Float32) -> None:
        """A round's weights for a structure."""
        self._path(kind, number).write_bytes(weights.astype("<f4").tobytes())
        self._kept.add(number)

    def _weights(self, kind: int, number: int) -> Float32:
        return np.fromfile(self._path(kind, number), dtype="<f4").astype(np.float32, copy=False)

    def forget(self, oldest: int) -> list[int]:
        """Let go of the rounds before `oldest`, but not of the first weights; which those were."""
        gone = sorted(number for number in self._kept if 0 < number < oldest)
        for number in gone:
            for path in Path(self._directory.name).glob(f"*-{number}"):
                path.unlink()
        self._kept.difference_update(gone)
        return gone

    def close(self) -> None:
        """Remove the files."""
        self._directory.cleanup()

    def _path(self, kind: int, number: int) -> Path:
        return Path(self._directory.name) / f"{kind}-{number}"
