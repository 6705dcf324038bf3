"""The demo's processes: started together, watched, started again when they die, and all ended at the end.

Each is a real `edgefl` command in a process of its own, with its log in the workspace. `pids.json` in the workspace says which is
which, so that a test (or a curious person) can kill one.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgefl.errors import MachineError
from edgefl.store.atomic import write_file

STOP_SECONDS = 5.0
MOST_RESTARTS = 10


class Process:
    """One supervised `edgefl` command.

    Args:
        name: for the log's name and for messages.
        arguments: of `edgefl`.
        directory: where the log goes.
    """

    def __init__(self, name: str, arguments: Sequence[str], directory: Path) -> None:
        self.name = name
        self.restarts = 0
        self.log = directory / f"{name}.log"
        self._arguments = [sys.executable, "-m", "edgefl", *arguments]
        self._child = self._start()

    @property
    def pid(self) -> int:
        """Process id of the running instance."""
        return self._child.pid

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C in the terminal reaches the demo, and the demo ends the others in order.
            return subprocess.Popen(self._arguments, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self, timeout: float) -> int:
        """Exit code. Raises MachineError when it does not end in time."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MachineError(
                f"{self.name} does not end", expected=f"within {timeout:.0f} s", remedy=f"See {self.log}"
            ) from None

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until the log holds a text. Raises MachineError when the process ends or the time is up before."""
        deadline = time.monotonic() + timeout
        while text not in self.log.read_text(errors="replace"):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"{self.name} did not start", found=self.tail() or "nothing in its log")
            time.sleep(0.05)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._child.poll() is not None

    def check(self) -> None:
        """Raises MachineError when it has ended with an error."""
        if self._child.returncode:
            raise MachineError(f"{self.name} failed", found=self.tail())

    def revive(self) -> bool:
        """Start it again if it has died; whether it had.

        Raises:
            MachineError: it dies again and again.
        """
        if self._child.poll() is None:
            return False
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            raise MachineError(f"{self.name} dies again and again", found=self.tail(), remedy="Correct that, then try again")
        self._child = self._start()
        return True

    def stop(self) -> None:
        """Ask it to end."""
        if self._child.poll() is None:
            self._child.terminate()

    def ended(self, deadline: float) -> None:
        """Wait for its end until the deadline (monotonic), then kill it."""
        try:
            self._child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def tail(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Company:
    """All processes of the demo, by name."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._processes: dict[str, Process] = {}
        self._passing: dict[str, Process] = {}

    def once(self, name: str, *arguments: str) -> Process:
        """Start a command that ends by itself; the company ends it with the others if it does not."""
        process = self._passing[name] = Process(name, arguments, self._workspace)
        return process

    def start(self, name: str, *arguments: str) -> Process:
        """Start a command and supervise it from now on."""
        process = self._processes[name] = Process(name, arguments, self._workspace)
        self._write_pids()
        return process

    def revive(self) -> None:
        """Start again what has died."""
        revived = [process.revive() for process in self._processes.values()]
        if any(revived):
            self._write_pids()

    def restarts(self) -> Mapping[str, int]:
        """How often each was started again."""
        return {name: process.restarts for name, process in self._processes.items()}

    def close(self) -> None:
        """End all: the devices first, the broker last, so that everybody can say good-bye."""
        for wave in ("device", "server", "broker"):
            processes = [p for name, p in {**self._passing, **self._processes}.items() if _wave(name) == wave]
            for process in processes:
                process.stop()
            deadline = time.monotonic() + STOP_SECONDS
            for process in processes:
                process.ended(deadline)

    def _write_pids(self) -> None:
        pids = {name: process.pid for name, process in self._processes.items()}
        write_file(self._workspace / "pids.json", msgspec.json.encode(pids))


def _wave(name: str) -> str:
    return name if name in ("server", "broker") else "device"
