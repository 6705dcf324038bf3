"""The scene: an experiment's examples and graphs, in the form that every worker gets once.

Model: all examples are one array; a device is a slice of `rows` and trains one *structure*: a model at a width, with its graphs.
Workers on this machine map the arrays from files, so that there is one copy of them in memory, whatever the number of workers
and devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgefl.engine.contract import VariantFiles
from edgefl.examples import Targets
from edgefl.layout import Float32, Index
from edgefl.simulate.jobs import SceneHead

ENGINE = "portable"


@dataclass(frozen=True, slots=True)
class Structure:
    """What some of the devices train.

    Attributes:
        head: layout, shapes and recipe.
        graphs: file contents by role.
    """

    head: SceneHead
    graphs: Mapping[str, bytes]

    def write_graphs(self, directory: Path) -> None:
        """Write the graphs to files that are named by role."""
        directory.mkdir(parents=True, exist_ok=True)
        for role, data in self.graphs.items():
            (directory / role).write_bytes(data)

    def files(self, directory: Path) -> VariantFiles:
        """The variant whose graphs `write_graphs` has written there."""
        head, paths = self.head, {role: directory / role for role in self.graphs}
        return VariantFiles(ENGINE, head.layout, head.input_shape, head.classes, head.batch, paths, head.recipe)

    @property
    def sent(self) -> int:
        """Coordinates of an update."""
        return self.head.layout.carried

    def parts(self) -> tuple[slice, ...]:
        """The place of each tensor in an update."""
        ends = np.cumsum([0, *(tensor.size for tensor in self.head.layout.tensors if tensor.shared)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @property
    def kept(self) -> int:
        """Numbers that a device keeps between its rounds: residual, velocity with momentum correction, personal tensors."""
        personal = sum(tensor.size for tensor in self.head.layout.tensors if tensor.personal)
        return self.sent * (2 if self.head.momentum else 1) + personal


@dataclass(frozen=True, slots=True)
class Scene:
    """What a worker needs to play any device. Treat the arrays as read-only.

    Attributes:
        structures: at least one.
        x, y: all examples, as `Examples` holds them; a model reads each row of `x` in its own input shape.
        rows: int64: positions in `x` and `y`, device after device.
        bounds: int64, shape `(devices + 1,)`: device i has `rows[bounds[i]:bounds[i + 1]]`.
        kinds: int64, shape `(devices,)`: which structure each device trains.
        tested: int64, shape `(devices,)`: how many of its last rows each device keeps for testing.
    """

    structures: tuple[Structure, ...]
    x: Float32
    y: Targets
    rows: Index
    bounds: Index
    kinds: Index
    tested: Index

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return len(self.bounds) - 1

    def samples(self, device: int) -> int:
        """Examples that a device trains on."""
        return len(self.trained_on(device))

    def trained_on(self, device: int) -> Index:
        """Positions of the examples that a device trains on."""
        return self.rows[self.bounds[device] : self.bounds[device + 1] - self.tested[device]]

    def tested_on(self, device: int) -> Index:
        """Positions of the examples that it is tested on."""
        return self.rows[self.bounds[device + 1] - self.tested[device] : self.bounds[device + 1]]

    def kind(self, device: int) -> int:
        """The number of the structure that a device trains."""
        return int(self.kinds[device])

    def write_graphs(self, directory: Path) -> None:
        """Write the graphs of each structure into a directory that is named by its number."""
        for kind, structure in enumerate(self.structures):
            structure.write_graphs(directory / str(kind))

    def files(self, directory: Path, kind: int) -> VariantFiles:
        """The variant of a structure whose graphs `write_graphs` has written there."""
        return self.structures[kind].files(directory / str(kind))

    @property
    def kept(self) -> int:
        """The most numbers that a device keeps between its rounds."""
        return max(structure.kept for structure in self.structures)
