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
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgefl.codec.history import History
from edgefl.codec.update import decode
from edgefl.codec.weights import decode_weights
from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port
from edgefl.device.coding import carried, shapes_of
from edgefl.device.job import Done, Held, Job, decode_answer, encode_line
from edgefl.profile import shipped_profiles
from edgefl.store.blobs import BlobStore
from edgefl.store.outbox import read_entry, read_residual, read_update
from edgefl.wire.messages import Signed
from edgefl.wire.messages import decode as decode_message
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import RoundOrder

S = TypeVar("S", bound=msgspec.Struct)
MODEL, PROFILE = "mnist-2nn", "rpi-zero-2w"
TESTED, OTHER = "board-arm64", "board-here"
EXAMPLES, BATCH, EPOCHS = 48, 16, 2
TOLERANCE = 1e-5
PATIENCE = 600.0
"""Seconds for a step of the course; an emulated board needs about a minute for the longest."""
MIB = 1024 * 1024
LIMIT_MIB = 150
"""Of the device extra on the board."""
FIRST_STEP_LIMIT = 1.5
"""Seconds from the start of the trainer's process to the end of its first training step, on x86-64."""
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
"""What any virtual environment holds."""


@dataclass(frozen=True)
class Board:
    """Where the tested agent lives: a root directory (`/` on a real board), and a Python environment inside it."""

    root: Path
    venv: str

    @property
    def emulated(self) -> bool:
        """Whether it is another user land."""
        return self.root != Path("/")

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs the board's Python with these arguments."""
        enter = ["chroot", str(self.root)] if self.emulated else []
        return ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *enter, f"{self.venv}/bin/python", *arguments]

    def seen(self, path: Path) -> str:
        """What the board calls a path of ours."""
        return "/" + str(path.relative_to(self.root)) if self.emulated else str(path)

    def site(self) -> Path:
        """The environment's packages."""
        return next((self.root / self.venv.lstrip("/") / "lib").glob("python3.*")) / "site-packages"


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


def kept(work: Path, name: str) -> Path:
    """Where a device keeps what it knows of the model."""
    return work / name / "state" / "models" / MODEL


def signed(path: Path, kind: type[S]) -> S | None:
    """What a file of a device's state says, its signature not looked at; None while there is none."""
    return decode_message(decode_message(path.read_bytes(), Signed).payload, kind) if path.is_file() else None


def agreed(work: Path) -> bool:
    """Whether both devices have adopted the same final weights."""
    orders = [signed(kept(work, name) / "order", RoundOrder) for name in (TESTED, OTHER)]
    return all(order and order.task is None for order in orders) and len({o.weights.sha256 for o in orders if o}) == 1


def same_job(work: Path) -> Job:
    """The job that the board was given, with our paths and an outbox of its own."""
    manifest, order = signed(kept(work, TESTED) / "current", Manifest), signed(kept(work, TESTED) / "order", RoundOrder)
    if manifest is None or order is None or order.task is None:
        raise SystemExit("the board has settled an update but holds no version or no order")
    blobs, here = BlobStore(work / TESTED / "state" / "blobs"), work / "here"
    here.mkdir()
    return Job(
        device=TESTED,
        version=manifest.version,
        variant=manifest.variant,
        round=order.round,
        engine=manifest.engine,
        layout=manifest.layout,
        input_shape=manifest.input_shape,
        classes=manifest.classes,
        batch=manifest.batch,
        graphs={ref.role: str(blobs.path(ref.sha256)) for ref in manifest.files if ref.role != "weights"},
        weights=str(blobs.path(order.weights.sha256)),
        source=f"npz:{work / 'examples.npz'}",
        task=order.task,
        outbox=str(here / "outbox"),
        settled=str(here / "settled"),
        recipe=manifest.recipe,
        personal=str(here / "personal"),
        start=Held(path=str(blobs.path(manifest.file("weights").sha256)), sha256=manifest.file("weights").sha256),
        weights_sha256=order.weights.sha256,
    )


def history_of(job: Job) -> History:
    """What both ends know in the first round: the version's weights, and the round's."""
    if job.start is None:
        raise SystemExit("the job lacks the version's weights")
    start, now = (decode_weights(Path(path).read_bytes(), job.layout) for path in (job.start.path, job.weights))
    return History(carried(job.layout, start), carried(job.layout, start), carried(job.layout, now), shapes_of(job.layout))


def trained_here(native: str, job: Job) -> Done:
    """Run a job in a trainer of this machine, with as many threads as the board's."""
    command = [native, "-m", "edgefl.device.trainer", str(shipped_profiles()[PROFILE].threads)]
    done = subprocess.run(command, input=encode_line(job), capture_output=True, check=True, cwd=Path(job.outbox).parent)
    answer = decode_answer(done.stdout)
    if not isinstance(answer, Done):
        raise SystemExit(f"training here failed: {answer.reason}")
    return answer


def first_step(native: str, job: Job, work: Path) -> float:
    """Seconds from the start of the process to its answer about a training of one step; the best of three."""
    with np.load(work / "examples.npz") as examples:
        np.savez(work / "step.npz", x=examples["x"][:BATCH], y=examples["y"][:BATCH])
    one = msgspec.structs.replace(job, source=f"npz:{work / 'step.npz'}")
    times = []
    for _ in range(3):
        began = time.monotonic()
        trained_here(native, one)
        times.append(time.monotonic() - began)
    return round(min(times), 3)


def compare(board: Board, native: str, theirs: Path, job: Job, work: Path) -> dict[str, float | bool | int]:
    """The whole updates against each other, and what the encoded bytes decode to on both machines."""
    ours, history = Path(job.outbox), history_of(job)
    vectors, encoded = [], []
    for name, path in (("theirs", theirs), ("ours", ours)):
        kept = read_residual(path)
        data = read_update(path)
        if kept is None:
            raise SystemExit(f"{path} is damaged")
        vector = np.frombuffer(kept[1], dtype="<f4").copy()
        sent = decode(data, len(vector), history)
        vector[sent.positions] += sent.values
        vectors.append(vector)
        (work / f"{name}.update").write_bytes(data)
        encoded.append(data)
    shutil.copy(Path(__file__).with_name("decoded.py"), work)
    shapes = {f"shape{number}": np.array(shape) for number, shape in enumerate(history.shapes)}
    np.savez(work / "history.npz", start=history.start, now=history.now, **shapes)
    paths = [work / "decoded.py", work / "history.npz", work / "theirs.update", work / "ours.update"]
    there = output(board.command(*(board.seen(path) for path in paths)))
    here = output([native, *(str(path) for path in paths)])
    losses = [entry.loss_after for entry in map(read_entry, (theirs, ours)) if entry]
    return {
        "parameters": len(vectors[0]),
        "largest_difference": float(np.abs(vectors[0] - vectors[1]).max()),
        "largest_value": float(np.abs(vectors[1]).max()),
        "loss_difference": abs(losses[0] - losses[1]),
        "bytes": len(encoded[0]),
        "same_bytes": encoded[0] == encoded[1],
        "decoded_alike": there == here,
    }


def output(command: Sequence[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine(python: Sequence[str]) -> dict[str, str]:
    """Architecture and versions, as a Python says itself."""
    code = (
        "import platform, numpy; from importlib.metadata import distributions as d; "
        "ort = [f'{x.name} {x.version}' for x in d() if (x.name or '').startswith('onnxruntime')]; "
        "print(platform.machine(), platform.python_version(), numpy.__version__, *ort, sep=';')"
    )
    words = output([*python, "-c", code]).strip().split(";")
    return dict(zip(("machine", "python", "numpy", "onnxruntime"), words, strict=True))


def peaks(agent: int) -> dict[str, float]:
    """Peak resident size of an agent and of its trainer, which idles for a while after its work, in MB."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    found = dict(zip(("agent", "trainer"), map(peak, (agent, *map(int, children))), strict=False))
    return {name: round(value / 1e6, 1) for name, value in found.items()}


def peak(pid: int) -> int:
    """VmHWM of a process in bytes."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def installed(board: Board) -> dict[str, Any]:
    """Size of the device extra as `install.sh` leaves it, byte code included; not what every environment has."""
    sizes: dict[str, int] = {}
    compiled = 0
    for path in board.site().rglob("*"):
        package = path.relative_to(board.site()).parts[0].partition("-")[0].removesuffix(".libs")
        if path.is_file() and not path.is_symlink() and package.removesuffix(".pth") not in NOT_OURS:
            sizes[package] = sizes.get(package, 0) + path.stat().st_size
            compiled += path.stat().st_size if path.suffix == ".pyc" else 0
    total = sum(sizes.values())
    largest = {name: round(size / MIB, 1) for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size > MIB}
    return {"bytes": total, "mib": round(total / MIB, 1), "byte_code_mib": round(compiled / MIB, 1), "largest_mib": largest}


if __name__ == "__main__":
    print(f"host {platform.machine()}, {platform.release()}", file=sys.stderr)
    sys.exit(main())
