"""What an idle board costs, measured as `benchmarks.idle` measures it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgefl.brokers.mosquitto import find_mosquitto

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_an_idle_board_costs_next_to_nothing(tmp_path):
    """After its training: at most 50 KB of MQTT a day beyond keep-alives, and at most 62 MB of memory (60.1 measured)."""
    target = tmp_path / "idle.json"
    command = [sys.executable, "-m", "benchmarks.idle", "--seconds", "40", "--json", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["pings"] >= 1
    assert 0 < found["connection_mqtt_bytes"] <= found["mqtt_bytes_per_day"] <= 50_000
    assert 20.0 < found["agent_rss_mb"] <= 62.0
