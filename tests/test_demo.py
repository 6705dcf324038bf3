"""The demo: the whole system as separate processes over a real broker, undisturbed and under fire."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.broker]
DEVICES = 6


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running demo; it is interrupted, as by Ctrl-C, if it is still running at the end."""
    command = [sys.executable, "-m", "edgefl", "demo", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def pids(workspace: Path) -> dict[str, int]:
    """Process ids by name, as the demo writes them down."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads((workspace / "pids.json").read_text()))
    return {}


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(reached: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Wait, while the demo runs, until something has happened."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def rows(workspace: Path, query: str) -> list[tuple[int, ...]]:
    """Read the fleet's database; nothing while it does not exist."""
    with (
        contextlib.suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{workspace}/fleet/fleet.sqlite?mode=ro", uri=True)) as database,
    ):
        return list(database.execute(query))
    return []


@pytest.mark.parametrize("broker", ["auto", "embedded"])
def test_demo_trains_a_mixed_fleet_and_leaves_nothing_behind(tmp_path: Path, broker: str) -> None:
    """Six profiles, three widths and both engines learn together; every variant fits its budget; all processes end."""
    workspace, result_file = tmp_path / "demo", tmp_path / "result.json"
    arguments = ("--rounds", "2", "--broker", broker, "--dir", str(workspace), "--json", str(result_file))
    with demo(*arguments) as process:
        output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    result = json.loads(result_file.read_text())
    devices = result["devices"]
    assert len({d["profile"] for d in devices}) == DEVICES
    assert len({d["params"] for d in devices}) >= 3
    assert {d["engine"] for d in devices} == {"portable", "ort-training"}
    assert all(0 < d["variant_bytes"] <= d["storage_budget_bytes"] for d in devices)
    assert all(0 < d["peak_rss_mb"] <= 150 for d in devices)
    assert [r["updates"] for r in result["rounds"]] == [DEVICES] * 2
    assert result["uplink_ratio"] == pytest.approx(
        result["dense_uplink_bytes"] / sum(r["uplink_bytes"] for r in result["rounds"]), abs=0.1
    )
    assert result["uplink_ratio"] >= 50
    assert not [name for name, pid in pids(workspace).items() if alive(pid)]


def test_interrupted_demo_cleans_up_after_itself(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends every process of the demo."""
    workspace = tmp_path / "demo"
    with demo("--rounds", "50", "--dir", str(workspace)) as process:
        until(lambda: len(pids(workspace)) == DEVICES + 2, process)
        started = pids(workspace)
        assert all(alive(pid) for pid in started.values())
    assert process.returncode == 130
    assert not [name for name, pid in started.items() if alive(pid)]


def test_killed_devices_and_server_cost_no_update_and_count_none_twice(tmp_path: Path) -> None:
    """SIGKILL of a device in mid-download, one in mid-training, the server in mid-round: each update still counts once."""
    workspace, result_file, rounds = tmp_path / "demo", tmp_path / "result.json", 3
    arguments = ("--rounds", str(rounds), "--epochs", "60", "--dir", str(workspace), "--json", str(result_file))
    with demo(*arguments) as process:
        downloader, trainee = "gateway-01", "zero-2w-06"
        until(lambda: list((workspace / "devices" / downloader / "state" / "partial").glob("*.part")), process)
        os.kill(pids(workspace)[downloader], signal.SIGKILL)
        log = workspace / f"{trainee}.log"
        until(lambda: log.is_file() and "round 2 training" in log.read_text(), process)
        os.kill(pids(workspace)[trainee], signal.SIGKILL)
        assert "round 2 trained" not in log.read_text()
        waiting = "SELECT COUNT(*) FROM updates WHERE counted IS NULL AND round=3"
        until(lambda: (count := rows(workspace, waiting)) and 1 <= count[0][0] < DEVICES, process)
        os.kill(pids(workspace)["server"], signal.SIGKILL)
        output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    result = json.loads(result_file.read_text())
    assert [r["updates"] for r in result["rounds"]] == [DEVICES] * rounds
    assert rows(workspace, "SELECT COUNT(*) FROM updates") == [(DEVICES * rounds,)]
    assert rows(workspace, "SELECT COUNT(*) FROM updates WHERE counted IS NOT round") == [(0,)]
    restarts = {d["id"]: d["restarts"] for d in result["devices"]}
    assert (restarts[downloader], restarts[trainee], result["server_restarts"]) == (1, 1, 1)
