"""What a version's trial costs a board beside a round of training: `python -m benchmarks.trial --json FILE`.

Model: the model is exported for the portable engine; a trainer process, as on a board, gets jobs. A *round* is one epoch over the
examples in a fresh process; a *trial* with a floor (both versions are evaluated) in a fresh process, and in one that is there
already; then a round in the process that has done a trial. Times are the trainer's own, medians over the repetitions; memory is
the process's largest resident size.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgefl.codec.golden import encode_golden, golden_inputs
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.job import Done, Failed, Job, Side, TrialJob, Verdict
from edgefl.device.training import TrainerProcess
from edgefl.engine.contract import VariantFiles
from edgefl.engine.open import open_engine
from edgefl.export.graphs import export_graphs
from edgefl.export.models import load_factory
from edgefl.wire.releases import Health
from edgefl.wire.rounds import Task

EXAMPLES, BATCH, MEMORY_MB = 600, 32, 4096


def made(model: str, root: Path) -> tuple[Job, TrialJob]:
    """A round and a trial of a model, whose files are below a directory."""
    source = load_factory(model)
    exported = export_graphs(source, 1.0, "portable", BATCH)
    paths = {role: root / role for role in exported.graphs}
    for role, path in paths.items():
        path.write_bytes(exported.graphs[role])
    rng = np.random.default_rng(0)
    vector = (0.02 * rng.standard_normal(exported.layout.size)).astype(np.float32)
    (root / "weights").write_bytes(encode_weights(vector, exported.layout, Precision.FP32))
    engine = open_engine(
        VariantFiles("portable", exported.layout, source.input_shape, source.classes, BATCH, paths, source.recipe), threads=1
    )
    engine.set_vector(vector)
    inputs = golden_inputs(source.input_shape, source.classes)
    (root / "golden").write_bytes(encode_golden(inputs, engine.predict(inputs)))
    x = rng.standard_normal((EXAMPLES, *source.input_shape)).astype(np.float32)
    np.savez(root / "data.npz", x=x, y=rng.integers(0, source.classes, EXAMPLES))
    side = Side(
        version=1,
        engine="portable",
        layout=exported.layout,
        input_shape=source.input_shape,
        classes=source.classes,
        batch=BATCH,
        graphs={role: str(path) for role, path in paths.items()},
        weights=str(root / "weights"),
        recipe=source.recipe,
    )
    told = f"npz:{root / 'data.npz'}"
    trial = TrialJob(candidate=side, before=side, golden=str(root / "golden"), source=told, health=Health(drop=0.5))
    job = Job(
        device="cam-01",
        version=1,
        variant="v",
        round=1,
        engine=side.engine,
        layout=side.layout,
        input_shape=side.input_shape,
        classes=side.classes,
        batch=BATCH,
        graphs=side.graphs,
        weights=side.weights,
        source=told,
        task=Task(1, 0.01, 0.01, 4, 1.0, 0),
        outbox=str(root / "outbox"),
        settled=str(root / "settled"),
        recipe=side.recipe,
        personal=str(root / "personal"),
    )
    return job, trial


def run(process: TrainerProcess, job: Job | TrialJob) -> Done | Verdict:
    """The answer to a job. Raises SystemExit when it is none that counts."""
    process.start(job)
    while (answer := process.poll()) is None:
        time.sleep(0.001)
    if isinstance(answer, Failed) or (isinstance(answer, Verdict) and answer.code):
        raise SystemExit(f"a job failed: {answer}")
    return answer


def measured(model: str, repetitions: int) -> Mapping[str, Mapping[str, float]]:
    """Medians for one model."""
    seconds: dict[str, list[float]] = {"round": [], "trial, cold": [], "trial, warm": [], "round after trials": []}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        job, trial = made(model, Path(directory))
        for _ in range(repetitions):
            for jobs in ((("round", job),), (("trial, cold", trial), ("trial, warm", trial), ("round after trials", job))):
                process = TrainerProcess(1, MEMORY_MB)
                for name, one in jobs:
                    answer = run(process, one)
                    seconds[name].append(answer.seconds)
                    peaks[name] = max(peaks.get(name, 0), answer.peak_rss)
                process.cancel()
    return {name: {"seconds": statistics.median(seconds[name]), "peak_rss": peaks[name]} for name in seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("--models", nargs="+", default=["mnist-2nn", "mnist-cnn"])
    parser.add_argument("--repetitions", type=int, default=5)
    chosen = parser.parse_args(arguments)
    report = {model: measured(model, chosen.repetitions) for model in chosen.models}
    for model, rows in report.items():
        for name, row in rows.items():
            print(f"{model:14} {name:20} {row['seconds']:7.3f} s {row['peak_rss'] / 1e6:7.1f} MB")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
