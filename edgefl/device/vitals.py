"""The vital signs of a board: what its system, its firmware and its service manager say when the doctor asks.

Rule: what cannot be found out is empty or None, never an error.
"""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from edgefl import __version__

PATIENCE = 5.0
"""Seconds for any program that is asked."""
LOAD_SECONDS = 120.0
"""Seconds for ONNX Runtime to load from a slow card."""


def versions() -> dict[str, str]:
    """Of what runs here."""
    return {
        "edgefl": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": runtime() or "not installed",
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def runtime() -> str:
    """Distribution and version of ONNX Runtime, empty without one; several at once are all named."""
    found = {f"{d.name} {d.version}" for d in distributions() if (d.name or "").startswith("onnxruntime")}
    return ", ".join(sorted(found))


def load_trouble() -> str:
    """Why ONNX Runtime does not load, empty if it does; tried in a child, so that this process stays small."""
    command = [sys.executable, "-c", "from edgefl.engine.runtime import onnxruntime; onnxruntime()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300] if done.returncode else ""


def temperature() -> float | None:
    """Of the hottest thermal zone, in degrees Celsius."""
    found = []
    for path in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(path.read_text()) / 1000.0)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


def throttled() -> int | None:
    """The flags of a Raspberry Pi's firmware; None on other boards."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        return int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


def service() -> dict[str, str]:
    """What systemd says of the agent's unit; empty where it says nothing."""
    names = "LoadState,ActiveState,Result,Type,WatchdogUSec,StatusText,NRestarts"
    try:
        command = ["systemctl", "show", "edgefl-device.service", f"--property={names}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
