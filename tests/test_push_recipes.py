"""Pushing other losses and optimisers, frozen and personal tensors, and models that one engine cannot train."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgefl.engine.runtime import available_engines
from edgefl.profile import Profile
from edgefl.recipe import Recipe
from edgefl.server.founding import create_fleet
from edgefl.server.variants import load_parent, load_variants
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import get_version, variants

pytest.importorskip("torch")

from edgefl.server.fitting import TRIES
from edgefl.server.push import PushRequest, push

MODELS = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (2, 8)

def normalised():
    return Window(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

def autoencoder():
    return Window(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 16), nn.Unflatten(1, (2, 8)))
"""


def board(name: str, engine: str) -> Profile:
    """A profile with room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=9999, memory_mb=2048,
        threads=1, link_kbps=1000, engine=engine, sources=("a data sheet",), reason="",
    )  # fmt: skip


def edgefl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run in the current directory."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "edgefl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A new fleet, and the models in the current directory."""
    (tmp_path / "windows.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "windows", raising=False)
    return create_fleet(tmp_path / "fleet", name="test")


@pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training-cpu")
def test_a_model_that_the_native_engine_cannot_train_gets_the_portable_one(fleet: Fleet) -> None:
    """Push says which engine cannot, why, and which one it takes instead; the profile keeps its name."""
    said: list[str] = []
    request = PushRequest("windows", "windows:normalised", batch=4)
    pushed = push(fleet, request, (board("pc", "ort-training"), board("pc2", "ort-training")), now=1.0, on_progress=said.append)
    assert [v.engine for v in pushed] == ["portable", "portable"]
    why = [line for line in said if line.startswith("ort-training cannot train")]
    assert 1 <= len(why) <= TRIES
    assert all("running statistics" in line for line in why)
    assert sum("gets the engine portable in place of ort-training" in line for line in said) == 2
    assert sum(line.startswith("exporting w1 for portable") for line in said) == 1
    with closing(open_database(fleet.database)) as database:
        assert {record.manifest.engine for record in variants(database, "windows", 1)} == {"portable"}


def test_recipe_and_marks_stand_in_the_manifest(fleet: Fleet) -> None:
    """Loss, optimiser, frozen and personal tensors reach the devices; the server expects the shared coordinates alone."""
    request = PushRequest(
        "windows", "windows:normalised", batch=4, recipe=Recipe("cross-entropy", "adamw", proximal=True),
        freeze=("0.*",), personal=("1.*",),
    )  # fmt: skip
    push(fleet, request, (board("pi", "portable"),), now=1.0)
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "windows", 1)
        (record,) = variants(database, "windows", 1)
        (view,) = load_variants(database, version, BlobStore(fleet.blobs)).values()
    assert record.manifest.recipe == request.recipe
    assert [t.name for t in record.manifest.layout.tensors if t.shared] == ["4.weight", "4.bias"]
    assert len(view.sent) == 75
    parent = load_parent(BlobStore(fleet.blobs), version.weights)
    np.testing.assert_array_equal(parent[view.index], parent)


def test_the_command_line_takes_a_recipe(fleet: Fleet) -> None:
    """An autoencoder by options; its accuracy is not measured, and its error is no accuracy."""
    np.savez("data.npz", x=np.zeros((5, 2, 8), dtype=np.float32), y=np.zeros(5, dtype=np.int64))
    arguments = ["push", "windows:autoencoder", "--name", "w", "--loss", "mse", "--optimizer", "momentum", "--batch", "4"]
    options = ["--holdout", "npz:data.npz", "--profile", "rpi-zero-2w", "--json", "--fleet", str(fleet.path)]
    done = edgefl(*arguments, *options)
    assert done.returncode == 0, done.stderr
    (pushed,) = json.loads(done.stdout)
    assert pushed["accuracy"] is None
    with closing(open_database(fleet.database)) as database:
        (record,) = variants(database, "w", 1)
    assert record.manifest.recipe == Recipe("mse", "momentum")
    with closing(open_database(fleet.database)) as database, database:
        add_devices(database, [Device("a", "rpi-zero-2w", "01", 1.0)])
    refused = edgefl("train", "start", "w", "--proximal", "0.1", "--fleet", str(fleet.path))
    assert refused.returncode == 2
    assert "has no proximal term" in refused.stderr
