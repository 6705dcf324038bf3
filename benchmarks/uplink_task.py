"""The federated task that every system gets: data, split, first weights and settings, written into one directory.

Model: the 2NN of 199,210 parameters (McMahan et al.), the examples split over the devices by a Dirichlet distribution, first
weights from a seed. `benchmarks.peers.perceptron` says what the files of the directory are; everybody reads the same ones.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgefl.export.models import load_factory
from edgefl.sources.parse import open_source
from edgefl.sources.split import dirichlet_split

MODEL = "mnist-2nn"
PARAMETERS = 199_210
LEAST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained and how.

    Attributes:
        data: directory with MNIST's four files, or None for scikit-learn's digits.
        devices, rounds: as many devices take part in every one of the rounds.
        epochs, batch, learning_rate: of plain SGD on a device.
        alpha: of the Dirichlet split; smaller is more unequal.
    """

    data: Path | None
    devices: int
    rounds: int
    epochs: int
    batch: int
    learning_rate: float
    alpha: float

    @property
    def dense_bytes(self) -> int:
        """All updates of all rounds as float32."""
        return 4 * PARAMETERS * self.devices * self.rounds


def write_task(setting: Setting, seed: int, directory: Path) -> Path:
    """Write the task of this seed into a new directory; equal settings and seeds give equal files.

    Raises:
        DataError: the data is missing or damaged.
    """
    directory.mkdir(parents=True)
    where = "digits:" if setting.data is None else f"idx:{setting.data.resolve()}"
    examples, test = open_source(f"{where}?split=train").load(), open_source(f"{where}?split=test").load()
    shards = dirichlet_split(examples.y, setting.devices, alpha=setting.alpha, seed=seed, minimum=LEAST_EXAMPLES)
    for number, rows in enumerate(shards, 1):
        np.savez(directory / f"shard-{number:02}.npz", x=examples.x[rows], y=examples.y[rows])
    np.savez(directory / "test.npz", x=test.x, y=test.y)
    weights = load_factory(MODEL).build(seed=seed).state_dict()
    start = {name: value.numpy() for name, value in weights.items()}
    assert sum(value.size for value in start.values()) == PARAMETERS
    np.savez(directory / "start.npz", **start)
    values = {**asdict(setting), "data": str(setting.data or "digits"), "seed": seed}
    (directory / "task.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return directory
