"""The benchmark's model and its training in numpy alone, so that every peer's environment trains the very same way.

Model: linear layers with ReLU in between and softmax cross-entropy, plain SGD; parameters are float32 arrays by torch's names
(`fc1.weight` of shape `(out, in)`, `fc1.bias`, ...); the names in alphabetical order are the layers. A task is a
directory that the benchmark writes: `task.json`, `start.npz` with the first parameters, `test.npz`, and `shard-01.npz`, ... with
the examples of each device.

Rules: nothing is imported but numpy and the standard library; this file runs where neither edgefl nor torch is installed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Parameters = dict[str, Float32]
Examples = tuple[Float32, Labels]


class Task:
    """What is trained, as the task directory says it.

    Attributes:
        devices, rounds, epochs, batch, learning_rate, seed: of the federated task.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        values = json.loads((directory / "task.json").read_text(encoding="utf-8"))
        self.devices = int(values["devices"])
        self.rounds = int(values["rounds"])
        self.epochs = int(values["epochs"])
        self.batch = int(values["batch"])
        self.learning_rate = float(values["learning_rate"])
        self.seed = int(values["seed"])

    def start(self) -> Parameters:
        """The parameters that all begin with."""
        with np.load(self._directory / "start.npz", allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def shard(self, device: int) -> Examples:
        """The examples of a device, counted from 1: `x` of shape `(n, inputs)`, `y` of shape `(n,)`."""
        return self._examples(f"shard-{device:02}.npz")

    def test(self) -> Examples:
        """The examples that accuracy is measured on."""
        return self._examples("test.npz")

    def trained(self, parameters: Mapping[str, Float32], device: int, number: int) -> Parameters:
        """What a device makes of the parameters in this round: `epochs` passes in an order of its own."""
        rng = np.random.default_rng((self.seed, device, number))
        return train(parameters, self.shard(device), self.epochs, self.batch, self.learning_rate, rng)

    def _examples(self, name: str) -> Examples:
        with np.load(self._directory / name, allow_pickle=False) as stored:
            x = stored["x"]
            return x.reshape(len(x), -1).astype(np.float32), stored["y"].astype(np.int64)


def train(
    parameters: Mapping[str, Float32], examples: Examples, epochs: int, batch: int, learning_rate: float, rng: np.random.Generator
) -> Parameters:
    """New parameters after `epochs` passes of mini-batches over shuffled examples; the last batch of a pass may be smaller."""
    x, y = examples
    current = {name: np.array(value, dtype=np.float32) for name, value in parameters.items()}
    rate = np.float32(learning_rate)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x), batch):
            rows = order[first : first + batch]
            for name, gradient in _gradients(current, x[rows], y[rows]).items():
                current[name] -= rate * gradient
    return current


def accuracy(parameters: Mapping[str, Float32], examples: Examples) -> float:
    """Fraction of the examples whose largest logit is their label's, in [0, 1]."""
    logits = _forward(parameters, examples[0])[-1]
    return float((logits.argmax(axis=1) == examples[1]).mean())


def _layers(parameters: Mapping[str, Float32]) -> list[str]:
    return sorted(name.removesuffix(".weight") for name in parameters if name.endswith(".weight"))


def _forward(parameters: Mapping[str, Float32], x: Float32) -> list[Float32]:
    """The input of every layer, and the logits."""
    layers = _layers(parameters)
    values = [x]
    for layer in layers:
        value = values[-1] @ parameters[f"{layer}.weight"].T + parameters[f"{layer}.bias"]
        values.append(value if layer == layers[-1] else np.maximum(value, 0.0))
    return values


def _gradients(parameters: Mapping[str, Float32], x: Float32, y: Labels) -> Parameters:
    """Of the mean cross-entropy of a batch."""
    values = _forward(parameters, x)
    shifted = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    error = shifted / shifted.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1.0
    error /= np.float32(len(y))
    gradients: Parameters = {}
    for layer, value in zip(reversed(_layers(parameters)), reversed(values[:-1]), strict=True):
        gradients[f"{layer}.weight"] = error.T @ value
        gradients[f"{layer}.bias"] = error.sum(axis=0)
        error = (error @ parameters[f"{layer}.weight"]) * (value > 0.0)
    return gradients
