"""Writes variant-*.bin: small exported variants with the numbers that torch computes for them.

A device's tests run where neither torch nor onnx is installed, so they take their graphs from here. Run it after the exporter
declares other inputs or outputs (tests/test_golden_graphs.py notices); needs edgefl's server extra and onnxruntime-training-cpu.

    python tests/golden/make_graphs.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgefl.layout import Layout
from edgefl.recipe import Recipe

HERE = Path(__file__).parent
BATCH = 4
STEPS = 3
LEARNING_RATE = 0.05
CASES: Mapping[str, tuple[str, str, Recipe]] = {
    "variant-dense": ("dense", "portable", Recipe()),
    "variant-conv": ("conv", "portable", Recipe(optimizer="momentum")),
    "variant-dense-native": ("dense", "ort-training", Recipe()),
}
"""Network, engine and recipe by file name."""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """A variant and what torch makes of it.

    Attributes:
        engine, layout, input_shape, classes, batch, recipe: as in a manifest.
        files: content by role.
        x, y, start: float32 and int64 values: one full batch, and the parameters before the first step.
        logits, losses: of `start`, and before each of the steps.
        end: parameters after `STEPS` steps on the batch.
    """

    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    recipe: Recipe
    files: dict[str, bytes]
    x: bytes
    y: bytes
    start: bytes
    logits: bytes
    losses: list[float]
    end: bytes


def read(name: str) -> Golden:
    """A golden file."""
    return msgspec.msgpack.decode((HERE / f"{name}.bin").read_bytes(), type=Golden)


def make(name: str) -> Golden:
    """A case as today's exporter and torch make it."""
    from edgefl.examples import Examples
    from edgefl.export.graphs import export_graphs
    from edgefl.export.models import ModelSource
    from edgefl.export.tensors import load_vector, vector_of
    from edgefl.export.verify import Reference

    network, engine, recipe = CASES[name]
    shape, classes, build = _network(network)
    source = ModelSource(name, lambda _: build(), shape, classes, scalable=False, recipe=recipe)
    exported = export_graphs(source, 1.0, engine, BATCH)
    rng = np.random.default_rng(7)
    start = (0.5 * rng.standard_normal(exported.layout.size)).astype(np.float32)
    examples = Examples(rng.standard_normal((BATCH, *shape)).astype(np.float32), rng.integers(0, classes, BATCH))
    reference = Reference(source, source.build(1.0), learning_rate=LEARNING_RATE)
    load_vector(reference.module, start)
    logits = reference.outputs(examples.x).tobytes()
    return Golden(
        engine=engine,
        layout=exported.layout,
        input_shape=shape,
        classes=classes,
        batch=BATCH,
        recipe=recipe,
        files=dict(exported.graphs),
        x=examples.x.tobytes(),
        y=examples.y.tobytes(),
        start=start.tobytes(),
        logits=logits,
        losses=[reference.step(examples) for _ in range(STEPS)],
        end=vector_of(reference.module).tobytes(),
    )


def _network(name: str) -> tuple[tuple[int, ...], int, Any]:
    """Input shape, classes and builder of a network."""
    from torch import nn

    def conv() -> nn.Module:
        layers = (nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))

    if name == "dense":
        return (6,), 3, lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return (1, 8, 8), 3, conv


if __name__ == "__main__":
    for case in CASES:
        path = HERE / f"{case}.bin"
        path.write_bytes(msgspec.msgpack.encode(make(case)))
        print(path.name, path.stat().st_size, "bytes")
