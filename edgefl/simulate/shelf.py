"""What workers on one machine share: a directory with the scene, the weights of each round, and the memories of all devices.

Model: arrays are `.npy` files that every worker maps, so that there is one copy in memory. The memories are rows of one sparse
file, read and written at their place: a device is with one worker at a time, so that nothing needs a lock, and what is not in use
is not in memory. Rows are as long as the largest structure needs, and begin with one number that says whether the device has
anything to remember.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from edgefl.errors import StoreError
from edgefl.layout import Float32, Index
from edgefl.simulate.jobs import HEADS
from edgefl.simulate.scene import Scene, Structure

HELD = 16
"""Weight vectors that a worker keeps in memory."""
_WRITTEN = np.float32(1.0).tobytes()
ARRAYS = ("x", "y", "rows", "bounds", "kinds", "tested")


class Shelf:
    """The files of one simulation.

    Attributes:
        directory: exists, and belongs to this simulation alone.
        graphs: where the scene's graphs are, by structure and role.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.graphs = directory / "graphs"
        self._memories = -1
        self._row = 0
        self._kept: list[int] = []
        self._kinds: Index = np.zeros(0, dtype=np.int64)
        self.weights = lru_cache(HELD)(self._weights)

    @classmethod
    def create(cls, directory: Path, scene: Scene) -> Self:
        """Write a scene. Raises StoreError when the disk does not take it."""
        try:
            shelf = cls(directory)
            shelf.graphs.mkdir()
            scene.write_graphs(shelf.graphs)
            for name in ARRAYS:
                np.save(directory / f"{name}.npy", getattr(scene, name))
            (directory / "heads").write_bytes(msgspec.msgpack.encode([structure.head for structure in scene.structures]))
            (directory / "memories").touch()
        except OSError as error:
            raise _full(directory, error) from error
        return shelf

    def scene(self) -> Scene:
        """The scene, its arrays mapped. Opens the memories."""
        arrays = {name: np.load(self.directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        heads = HEADS.decode((self.directory / "heads").read_bytes())
        scene = Scene(tuple(Structure(head, _graphs(self.graphs / str(kind))) for kind, head in enumerate(heads)), **arrays)
        self._row = len(_WRITTEN) + 4 * scene.kept
        self._kinds, self._kept = scene.kinds, [4 * structure.kept for structure in scene.structures]
        self._memories = os.open(self.directory / "memories", os.O_RDWR)
        return scene

    def put_weights(self, kind: int, number: int, weights: Float32) -> None:
        """The weights of a round for a structure. Raises StoreError when the disk is full."""
        try:
            self._path(kind, number).write_bytes(weights.astype("<f4").tobytes())
        except OSError as error:
            raise _full(self.directory, error) from error

    def drop_weights(self, number: int) -> None:
        """Remove the weights of a round."""
        for path in self.directory.glob(f"weights-*-{number}"):
            path.unlink()

    def _weights(self, kind: int, number: int) -> Float32:
        return np.fromfile(self._path(kind, number), dtype="<f4").astype(np.float32, copy=False)

    def memory(self, device: int) -> bytes:
        """What a device kept; empty before its first round."""
        length = len(_WRITTEN) + self._kept[int(self._kinds[device])]
        row = os.pread(self._memories, length, device * self._row)
        return row[len(_WRITTEN) :] if row[: len(_WRITTEN)] == _WRITTEN else b""

    def remember(self, device: int, memory: bytes) -> None:
        """What a device keeps. Raises StoreError when the disk is full."""
        if not memory:
            return
        try:
            os.pwrite(self._memories, _WRITTEN + memory, device * self._row)
        except OSError as error:
            raise _full(self.directory, error) from error

    def close(self) -> None:
        """Let go of the files."""
        if self._memories >= 0:
            os.close(self._memories)
            self._memories = -1

    def _path(self, kind: int, number: int) -> Path:
        return self.directory / f"weights-{kind}-{number}"


def _graphs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _full(directory: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the simulation's files cannot be written to {directory}",
        found=error.strerror or str(error),
        remedy="Free some space there, or name another directory in TMPDIR",
    )
