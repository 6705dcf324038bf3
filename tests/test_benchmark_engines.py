"""The benchmark of the engines runs and writes what its readers expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgefl.engine.runtime import available_engines

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_quick_run_writes_all_its_numbers(tmp_path):
    """Each engine has a row, a size, a start and an installation; the table names the model."""
    target = tmp_path / "engines.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engines", "--quick", "--json", str(target)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2NN" in done.stdout
    report = json.loads(target.read_text())
    engines = [*available_engines(), "torch"]
    assert [row["engine"] for row in report["rows"]] == engines
    for row in report["rows"]:
        assert (row["model"], row["batch"], row["threads"]) == ("2NN", 10, 1)
        assert 0.0 < row["ms_min"] <= row["ms_median"] < 1000.0
        assert 20.0 < row["rss_mb"] < 1000.0
        assert row["portable_ratio"] > 0.0
        assert 0.0 < report["start_to_first_step_s"]["2NN"][row["engine"]] < 60.0
        assert report["install_bytes"][row["engine"]]["numpy"] > 1_000_000
    portable, torch = report["rows"][0], report["rows"][-1]
    assert portable["portable_ratio"] == 1.0
    assert portable["rss_mb"] < torch["rss_mb"] / 2
    assert any(name.startswith("onnxruntime") for name in report["install_bytes"]["portable"])
    assert "torch" not in report["install_bytes"]["portable"]
