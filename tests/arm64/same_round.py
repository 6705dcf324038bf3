"""The board's round once more on this machine: the same job, and how far the two updates are from each other."""

import shutil
import subprocess
import time
from pathlib import Path

import msgspec
import numpy as np
from board import Board, output

from edgefl.codec.history import History
from edgefl.codec.update import decode
from edgefl.codec.weights import decode_weights
from edgefl.device.coding import carried, shapes_of
from edgefl.device.config import load_bundle
from edgefl.device.job import Done, Held, Job, decode_answer, encode_line, graphs_of
from edgefl.device.trust import kept_manifest
from edgefl.profile import shipped_profiles
from edgefl.store.blobs import BlobStore
from edgefl.store.outbox import read_entry, read_residual, read_update
from edgefl.wire.messages import Signed
from edgefl.wire.messages import decode as decode_message
from edgefl.wire.rounds import RoundOrder

MODEL, PROFILE = "mnist-2nn", "rpi-zero-2w"
TESTED, OTHER = "board-arm64", "board-here"
EXAMPLES, BATCH, EPOCHS = 48, 16, 2


def kept(work: Path, name: str) -> Path:
    """Where a device keeps what it knows of the model."""
    return work / name / "state" / "models" / MODEL


def heard(work: Path, name: str) -> RoundOrder | None:
    """The newest order in a device's state, its signature not looked at; None while there is none."""
    path = kept(work, name) / "order"
    return decode_message(decode_message(path.read_bytes(), Signed).payload, RoundOrder) if path.is_file() else None


def same_job(work: Path) -> Job:
    """The job that the board was given, with our paths and an outbox of its own."""
    sealed, order = (kept(work, TESTED) / "current").read_bytes(), heard(work, TESTED)
    if order is None or order.task is None:
        raise SystemExit("the board has settled an update but holds no order")
    manifest = kept_manifest(sealed, MODEL, load_bundle(work / TESTED).config)
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
        graphs=graphs_of(manifest.files, lambda sha256: str(blobs.path(sha256))),
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
