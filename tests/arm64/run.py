"""Drives one round with two boards, one on aarch64 and one of this machine, and compares what they computed.

Course: a fleet, a broker and a server here; the agent on the board under test fetches the model, trains round 1 and has its
update stored. While the round stands open (its cohort is two) the same job is trained by this machine's trainer: same task, same
device id, hence the same seed. Then a second device, of this machine, closes the round, and the board adopts the final weights.

Promises checked: the two updates (what was sent plus the residual) agree within `TOLERANCE`; the encoded bytes of both decode to
the same values on both machines; the round closes with both updates; both devices end with the same weights;
`edgefl device doctor` on the board, the agent running beside it, finds that it can take part.

Under emulation times mean nothing and resident sizes include the emulator's own: they are upper bounds. The memory limit of the
trainer is not tested there either.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port

sys.path.insert(0, str(Path(__file__).parent))
from board import Board, installed, machine, peaks
from same_round import (
    BATCH,
    EPOCHS,
    EXAMPLES,
    MODEL,
    OTHER,
    PROFILE,
    TESTED,
    compare,
    first_step,
    heard,
    kept,
    same_job,
    trained_here,
)

LIMIT_MIB = 150
"""Of the device extra on the board."""
TOLERANCE = 1e-5
PATIENCE = 600.0
"""Seconds for a step of the course; an emulated board needs about a minute for the longest."""
FIRST_STEP_LIMIT = 1.5
"""Seconds from the start of the trainer's process to the end of its first training step, on x86-64."""


def main() -> int:
    """Run everything; 0 if every promise holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--board", required=True, help="virtual environment on the board, as the board calls it")
    parser.add_argument("--native", required=True, help="this machine's Python with the device extra")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    board = Board(options.root, options.board)
    home = board.root / "var/tmp" if board.emulated else Path(tempfile.gettempdir())
    work = Path(tempfile.mkdtemp(prefix="edgefl-round-", dir=home))
    try:
        report = run(board, str(Path.cwd() / options.native), work)
    except BaseException:
        print(f"failed; the logs are in {work}", file=sys.stderr)
        raise
    shutil.rmtree(work)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    broken = [name for name, holds in report["promises"].items() if not holds]
    print(f"broken: {', '.join(broken)}" if broken else "all promises hold")
    return 1 if broken else 0


def run(board: Board, native: str, work: Path) -> dict[str, Any]:
    """The course; what was found."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES, 1, 28, 28)).astype(np.float32)
    np.savez(work / "examples.npz", x=x, y=np.arange(EXAMPLES) % 10)
    fleet = ("--fleet", str(work / "fleet"))
    edgefl("init", str(work / "fleet"), "--port", str(free_port()))
    for name, source in ((TESTED, board.seen(work / "examples.npz")), (OTHER, str(work / "examples.npz"))):
        edgefl("provision", name, "--profile", PROFILE, "--out", str(work), "--data", f"npz:{source}", *fleet)
    with company(work) as processes:
        processes.start("broker", "broker", *fleet).wait_for("broker ready", PATIENCE)
        processes.start("server", "serve", *fleet).wait_for("serving fleet", PATIENCE)
        edgefl("push", MODEL, "--batch", str(BATCH), *fleet)
        edgefl("train", "start", MODEL, "--rounds", "1", "--cohort", "2", "--epochs", str(EPOCHS), *fleet)
        run_device = ("-m", "edgefl", "device", "run")
        with device(work / f"{TESTED}.log", board.command(*run_device, board.seen(work / TESTED))) as tested:
            settled = kept(work, TESTED) / "settled"
            until("the server has the board's update", settled.is_file, tested)
            memory = peaks(tested.pid)
            job = same_job(work)
            here = trained_here(native, job)
            comparison = compare(board, native, settled, job, work)
            with device(work / f"{OTHER}.log", [native, *run_device, str(work / OTHER)]) as other:
                until("both devices hold the final weights", lambda: agreed(work), tested, other)
                memory_here = peaks(other.pid)
            doctor = board.command("-m", "edgefl", "device", "doctor", board.seen(work / TESTED), "--json")
            said = json.loads(subprocess.run(doctor, capture_output=True, check=False).stdout)
        status = json.loads(edgefl("status", "--json", *fleet))
    (closed,) = status["trainings"][0]["rounds"]
    size = installed(board)
    first = first_step(native, msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, epochs=1)), work)
    return {
        "board": machine(board.command()) | {"emulated": board.emulated, "device_extra": size},
        "native": machine([native]),
        "peak_rss_mb": {"board": memory, "native": memory_here, "board_includes_emulator": board.emulated},
        "seconds": {"native_start_to_first_step": first, "native_round": round(here.seconds, 3)},
        "round": {
            "updates": closed["updates"],
            "uplink_bytes": closed["uplink_bytes"],
            "downlink_bytes": closed["downlink_bytes"],
        },
        "update": comparison,
        "doctor": [f"{check['state']} {check['name']}: {check['text']}" for check in said["checks"]],
        "promises": {
            "the updates agree": comparison["largest_difference"] <= TOLERANCE,
            "the updates are not empty": comparison["largest_value"] > 100 * TOLERANCE,
            "both machines decode the same": comparison["decoded_alike"],
            "the board's doctor finds it able": said["able"],
            "the round closed with both updates": closed["updates"] == 2,
            f"the device extra takes at most {LIMIT_MIB} MiB": size["mib"] <= LIMIT_MIB,
            f"x86-64 makes its first step within {FIRST_STEP_LIMIT} s": first <= FIRST_STEP_LIMIT or board.root == Path("/"),
        },
    }


def edgefl(*arguments: str) -> str:
    """Run a command of ours; what it printed."""
    done = subprocess.run([sys.executable, "-m", "edgefl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"edgefl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def company(work: Path) -> Iterator[Company]:
    """Broker and server, ended in order whatever happens."""
    processes = Company(work)
    try:
        yield processes
    finally:
        processes.close()


@contextmanager
def device(log: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """An agent, asked to end at the end, then ended with its trainer."""
    with log.open("wb") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield agent
    finally:
        agent.terminate()
        try:
            agent.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def until(what: str, reached: Callable[[], bool], *agents: subprocess.Popen[bytes]) -> None:
    """Wait; an agent that ends, or too much time, is a failure."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline or any(agent.poll() is not None for agent in agents):
            raise SystemExit(f"it did not come to pass that {what}")
        time.sleep(0.2)


def agreed(work: Path) -> bool:
    """Whether both devices have adopted the same final weights."""
    orders = [heard(work, name) for name in (TESTED, OTHER)]
    return all(order and order.task is None for order in orders) and len({o.weights.sha256 for o in orders if o}) == 1


if __name__ == "__main__":
    print(f"host {platform.machine()}, {platform.release()}", file=sys.stderr)
    sys.exit(main())
