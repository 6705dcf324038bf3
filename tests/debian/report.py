"""What every promise needs: the board's names, our own commands, waiting, and the note of whether the promise held."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

DEVICE, MODEL = "board-01", "mnist-cnn"
PROFILE = {"x86_64": "x86-64-gateway", "aarch64": "rpi-4b-2gb"}[os.uname().machine]
PATIENCE = 180.0


class Report:
    """Promises, in the order in which they were tried."""

    def __init__(self) -> None:
        self.promises: dict[str, bool] = {}
        self.figures: dict[str, object] = {}

    def check(self, promise: str, held: object, found: object = "") -> None:
        """Note whether a promise held."""
        self.promises[promise] = bool(held)
        print(f"{'ok    ' if held else 'BROKEN'} {promise}" + ("" if held else f"\n       found: {found}"), flush=True)


def edgefl(*arguments: str) -> str:
    """Run a command of ours; what it printed."""
    done = subprocess.run([sys.executable, "-m", "edgefl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"edgefl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait; whether it came to pass."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
