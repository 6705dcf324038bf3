"""Personal tensors: kept on the device from round to round, replaced by no round, sent by no update."""

from pathlib import Path

import numpy as np
import pytest

from edgefl.codec.update import decode
from edgefl.codec.weights import Precision, encode_weights
from edgefl.layout import Layout, Tensor
from edgefl.recipe import Recipe
from edgefl.store.outbox import read_update
from edgefl.store.personal import keep_personal, with_personal
from edgefl.wire.rounds import Task

LAYOUT = Layout((Tensor("w", (3, 2)), Tensor("norm", (4,), "state", personal=True), Tensor("b", (2,), "frozen")))
PLAIN = Layout((Tensor("w", (3, 2)),))


def test_a_vector_gets_the_devices_own_values_back(tmp_path: Path) -> None:
    """What was kept stands in the next round's vector, at the personal coordinates and nowhere else."""
    mine, base = np.arange(12, dtype=np.float32), np.full(12, -1.0, dtype=np.float32)
    keep_personal(tmp_path / "p", 3, LAYOUT, mine)
    mixed = with_personal(tmp_path / "p", 3, LAYOUT, base)
    np.testing.assert_array_equal(mixed, [-1] * 6 + [6, 7, 8, 9] + [-1] * 2)
    assert (base == -1).all()


def test_without_personal_tensors_nothing_is_written(tmp_path: Path) -> None:
    """And the vector is the round's."""
    vector = np.ones(6, dtype=np.float32)
    keep_personal(tmp_path / "p", 1, PLAIN, vector)
    assert not (tmp_path / "p").exists()
    assert with_personal(tmp_path / "p", 1, PLAIN, vector) is vector


@pytest.mark.parametrize("damage", ["missing", "version", "layout", "flipped", "cut", "long", "nonsense"])
def test_what_does_not_belong_counts_as_absent(tmp_path: Path, damage: str) -> None:
    """Another version, another layout, or a damaged file: the device starts from the values of the round."""
    path, base = tmp_path / "p", np.zeros(12, dtype=np.float32)
    keep_personal(path, 3, LAYOUT, np.arange(12, dtype=np.float32))
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-5:]
    elif damage == "long":
        data += bytes(100_000)
    elif damage == "nonsense":
        data[:] = b"\xc1" * 40
    if damage != "missing":
        path.write_bytes(bytes(data))
    other = Layout((Tensor("w", (3, 2)), Tensor("norm", (4,), "trained", personal=True), Tensor("b", (2,))))
    found = with_personal(path, 4 if damage == "version" else 3, other if damage == "layout" else LAYOUT, base)
    assert found is base


def test_an_update_carries_shared_coordinates_only(tmp_path: Path) -> None:
    """Two rounds of the trainer: BatchNorm stays personal and goes on where it stood; the update has no room for it."""
    torch = pytest.importorskip("torch")
    from torch import nn

    from edgefl.device.job import Job
    from edgefl.device.trainer import Trainer
    from edgefl.export.graphs import export_graphs
    from edgefl.export.models import ModelSource
    from edgefl.export.tensors import vector_of

    def factory(_: float) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    source = ModelSource("m", factory, (4,), 3, False, Recipe("cross-entropy", "adamw"), freeze=("3.bias",), personal=("1.*",))
    exported = export_graphs(source, 1.0, "portable", 8)
    for role, data in exported.graphs.items():
        (tmp_path / role).write_bytes(data)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((40, 4)).astype(np.float32) + 5, y=rng.integers(0, 3, 40))
    base = vector_of(source.build())
    (tmp_path / "weights").write_bytes(encode_weights(base, exported.layout, Precision.FP32))

    def run(number: int) -> np.ndarray:
        task = Task(epochs=1, learning_rate=0.01, sparsity=1.0, bits=8, fraction=1.0, seed=1)
        job = Job(
            device="a", version=1, variant="w1", round=number, engine="portable", layout=exported.layout, input_shape=(4,),
            classes=3, batch=8, graphs={role: str(tmp_path / role) for role in exported.graphs},
            weights=str(tmp_path / "weights"),
            source=f"npz:{tmp_path}/d.npz", task=task, outbox=str(tmp_path / "outbox"), settled=str(tmp_path / "settled"),
            recipe=source.recipe, personal=str(tmp_path / "personal"),
        )  # fmt: skip
        Trainer(1).run(job)
        return with_personal(tmp_path / "personal", 1, exported.layout, base)

    first, second = run(1), run(2)
    assert decode(read_update(tmp_path / "outbox"), 24 + 18).size == 24 + 18
    mean = exported.layout.views(base)["1.running_mean"]
    once, twice = (exported.layout.views(vector)["1.running_mean"] for vector in (first, second))
    assert np.abs(once - mean).max() > 0
    assert np.abs(twice - mean).max() > np.abs(once - mean).max(), "the second round went on from the first"
    np.testing.assert_array_equal(exported.layout.views(second)["3.weight"], exported.layout.views(base)["3.weight"])
    assert torch is not None
