"""The studies behind `python -m benchmarks.results`."""

import json

import numpy as np
import pytest

from benchmarks.rows import by_label, mean, spread


def test_the_last_row_of_each_seed_counts() -> None:
    """A study may yield a row for every evaluation; tables are of the last ones, by label."""
    rows = [{"label": "a", "seed": seed, "accuracy": seed + step / 10} for seed in (0, 1) for step in range(3)]
    found = by_label([*rows, {"label": "b", "seed": 0, "accuracy": 1.0}])
    assert list(found) == ["a", "b"]
    assert mean(found["a"], "accuracy") == pytest.approx(0.7)
    assert spread(found["a"], "accuracy") == pytest.approx(0.5)
    assert mean(found["b"], "bytes") == 0


def test_missing_data_is_said_in_one_line(monkeypatch) -> None:
    """A study that needs MNIST ends with what to do."""
    pytest.importorskip("torch")
    from benchmarks.results import main

    monkeypatch.delenv("EDGEFL_DATA", raising=False)
    with pytest.raises(SystemExit, match="EDGEFL_DATA"):
        main(["compress-lenet", "--seeds", "1"])


@pytest.mark.slow
def test_compress_lenet_measures_files_as_devices_read_them(monkeypatch, tmp_path) -> None:
    """On a few random images: a row for each method with the bytes of its file, written as JSON."""
    pytest.importorskip("torch")
    from benchmarks import compress_lenet as study
    from benchmarks.results import main
    from edgefl.examples import Examples, unlabelled
    from edgefl.retrain.pruning import Pruning
    from edgefl.retrain.training import Schedule

    rng = np.random.default_rng(0)
    few = Examples(rng.random((40, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 40))
    short = Schedule(2, 8)
    monkeypatch.setattr(study, "digits", lambda _: study.Digits(few, unlabelled(few.x), few))
    monkeypatch.setattr(study, "MODELS", {"LeNet-300-100": study.Model(study.LeNet300, short, Pruning(0.9), short, short, 1)})
    main(["compress-lenet", "--seeds", "1", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["label"] for row in rows] == [f"LeNet-300-100 {method}" for method in study.METHODS]
    fp32, *others = [row["bytes"] for row in rows]
    assert fp32 == 16 + 4 * 266_610
    assert all(length < fp32 / 3 for length in others)


@pytest.mark.slow
def test_profiles_proves_the_fit_of_every_variant(monkeypatch, tmp_path) -> None:
    """On an easy task: a row for the whole model, for each profile with what proves its fit, two for each share."""
    pytest.importorskip("torch")
    from benchmarks import profiles as study
    from benchmarks.results import main
    from edgefl.examples import Examples

    def data(_, seed):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 10, 900)
        x = (np.random.default_rng(1).standard_normal((10, 784))[y] + rng.standard_normal((900, 784))).astype(np.float32)
        parts = np.split(np.arange(900), [500, 700])
        return study.Data(*(Examples(x[rows], y[rows]) for rows in parts))

    monkeypatch.setenv("EDGEFL_DATA", str(tmp_path))
    monkeypatch.setattr(study, "TASKS", {"toy": study.Task("mnist-2nn", data, 3, steps=5)})
    monkeypatch.setattr(study, "PROFILES", ("rpi-zero-2w", "jetson-orin-nano"))
    monkeypatch.setattr(study, "SHARES", (1 / 4,))
    main(["profiles", "--seeds", "1", "--json", str(tmp_path / "rows.json")])
    whole, small, large, widest, planned = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["label"] for row in (whole, small)] == ["toy fp32", "toy rpi-zero-2w"]
    assert [row["label"] for row in (widest, planned)] == ["toy 1/4 widest", "toy 1/4 planned"]
    assert small["variant"] == large["variant"] == "w1-fp32"
    for row in (small, large):
        assert whole["bytes"] < row["bytes"] < row["footprint"] <= row["storage"]
        assert 0 < row["peak_bytes"] <= row["memory_mb"] << 20
        assert row["accuracy"] == whole["accuracy"] > 0.9
    assert planned["footprint"] <= whole["bytes"] * 5 / 4
    assert planned["accuracy"] >= widest["accuracy"]
