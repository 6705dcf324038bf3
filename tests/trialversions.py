"""Versions for trials: a small variant with its golden outputs, whole or with one file spoilt, on disk and as a job.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import tempfile
from pathlib import Path

import numpy as np

import make_graphs
from edgefl.codec.golden import encode_golden, golden_inputs
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.job import Side, TrialJob
from edgefl.engine.contract import VariantFiles
from edgefl.engine.open import open_engine
from edgefl.wire.releases import Health

VARIANT = make_graphs.read("variant-dense")
START = np.frombuffer(VARIANT.start, dtype=np.float32)


def outputs(vector, inputs):
    """What the variant gives."""
    with tempfile.TemporaryDirectory() as directory:
        paths = {role: Path(directory) / role for role in VARIANT.files}
        for role, path in paths.items():
            path.write_bytes(VARIANT.files[role])
        v = VARIANT
        engine = open_engine(VariantFiles(v.engine, v.layout, v.input_shape, v.classes, v.batch, paths, v.recipe), threads=1)
        engine.set_vector(vector)
        return engine.predict(inputs)


def contents(vector=START, change=""):
    """Files of a version by role, one of them changed."""
    inputs = golden_inputs(VARIANT.input_shape, VARIANT.classes)
    golden = encode_golden(inputs, outputs(vector, inputs))
    weights = encode_weights(vector, VARIANT.layout, Precision.FP32)
    files = {**VARIANT.files, "golden": golden, "weights": weights}
    if change == "golden":
        files["golden"] = encode_golden(inputs, outputs(vector, inputs) + 0.1)
    elif change == "torn golden":
        files["golden"] = golden[:-1]
    elif change == "nan":
        files["weights"] = weights[:-4] + np.float32("nan").tobytes()
    elif change:
        files[change] = VARIANT.files[change][: len(VARIANT.files[change]) // 2]
    return files


def data_for(path, vector):
    """Examples that a version with this vector answers all right."""
    x = np.random.default_rng(3).normal(size=(60, *VARIANT.input_shape)).astype(np.float32)
    np.savez(path, x=x, y=outputs(vector, x).argmax(1))


def side(root, files, version):
    """A version on disk."""
    root.mkdir()
    for role, data in files.items():
        (root / role).write_bytes(data)
    graphs = {role: str(root / role) for role in VARIANT.files}
    return Side(
        version=version, engine=VARIANT.engine, layout=VARIANT.layout, input_shape=VARIANT.input_shape, classes=VARIANT.classes,
        batch=VARIANT.batch, graphs=graphs, weights=str(root / "weights"), recipe=VARIANT.recipe,
    )  # fmt: skip


def trial(root, change="", *, vector=START, before=None, **health):
    """A trial of version 2; `before` is the vector of version 1."""
    data_for(root / "data.npz", START)
    golden = str(root / "new" / "golden")
    return TrialJob(
        candidate=side(root / "new", contents(vector, change), 2),
        before=None if before is None else side(root / "old", contents(before), 1),
        golden=golden, source=f"npz:{root / 'data.npz'}", health=Health(**health), personal=str(root / "personal"),
    )  # fmt: skip
