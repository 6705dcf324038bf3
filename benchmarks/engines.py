"""How fast and how large the training engines are, beside torch: `python -m benchmarks.engines --json FILE`.

Model: for each model, batch and number of threads, every engine trains in a process of its own, and the processes take turns of
a few steps. A machine that slows down slows all of them, so ratios are taken within a turn and their median is reported; other
work on the machine shows in the milliseconds, less in the ratios. All numbers are from the same seed.

The portable engine runs on whatever ONNX Runtime is installed here; `install_bytes` says which. On one that cannot train
natively, `ort-training` is left out.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from benchmarks.trainer import Request, Trainer
from edgefl.engine.runtime import available_engines
from edgefl.export.graphs import export_graphs, variant_files
from edgefl.export.models import load_factory
from edgefl.export.tensors import layout_of

MODELS: Mapping[str, str] = {
    "2NN": "mnist-2nn",
    "McMahan CNN": "mnist-cnn",
    "depthwise-separable CNN": "benchmarks.models:SeparableCNN",
    "1-D CNN": "har-cnn1d",
}
RUNTIMES = ("onnxruntime-training-cpu", "onnxruntime-training", "onnxruntime")
MEGABYTE = 1e6
TURN_MS = 80.0
SEED = 0

Row = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which models (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 64], metavar="ROWS")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each engine (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small model and few turns: to see that it works")
    given = parser.parse_args(arguments)
    if given.quick:
        given.models, given.batches, given.threads, given.rounds = ["2NN"], [10], [1], 2
    engines = [*available_engines(), "torch"]
    rows: list[Row] = []
    titles = [*(f"{e}, ms" for e in engines), *(f"/ {e}" for e in engines if e != "portable"), *(f"{e}, MB" for e in engines)]
    print(f"{'model':24}{'rows':>5}{'thr':>4}" + "".join(f"{title:>18}" for title in titles))
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        for model, batch, requests in _variants(given.models, given.batches, engines, Path(directory)):
            for threads in given.threads:
                found = _measured(model, batch, threads, requests, given.rounds)
                _print(model, batch, threads, found)
                rows += found
    if given.json is not None:
        given.json.write_text(json.dumps(_report(rows, engines), indent=1) + "\n", encoding="utf-8")


def _variants(
    models: Sequence[str], batches: Sequence[int], engines: Sequence[str], root: Path
) -> Iterator[tuple[str, int, list[Request]]]:
    """Each model at each batch, with a request for each engine."""
    for model in models:
        source = load_factory(MODELS[model])
        layout = layout_of(source.build())
        for batch in batches:
            requests: list[Request] = []
            for engine in engines:
                paths: Mapping[str, Path] = {}
                if engine != "torch":
                    directory = root / f"{len(requests)}-{MODELS[model].replace(':', '.')}-{batch}"
                    directory.mkdir()
                    exported = export_graphs(source, 1.0, engine, batch)
                    paths = variant_files(source, exported, engine, batch, directory).paths
                files = {role: str(path) for role, path in paths.items()}
                requests.append(Request(engine, MODELS[model], layout, source.input_shape, source.classes, batch, files, 1, SEED))
            yield model, batch, requests


def _measured(model: str, batch: int, threads: int, requests: Sequence[Request], rounds: int) -> list[Row]:
    """A row for each engine."""
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        trainers = {r.engine: Trainer(msgspec.structs.replace(r, threads=threads), Path(directory)) for r in requests}
    steps = {engine: max(1, round(TURN_MS / trainer.run(3))) for engine, trainer in trainers.items()}
    turns = [{engine: trainer.run(steps[engine]) for engine, trainer in trainers.items()} for _ in range(rounds)]
    return [
        {
            "model": model,
            "batch": batch,
            "threads": threads,
            "engine": engine,
            "ms_median": statistics.median(turn[engine] for turn in turns),
            "ms_min": min(turn[engine] for turn in turns),
            "portable_ratio": statistics.median(turn["portable"] / turn[engine] for turn in turns),
            "rss_mb": trainer.close() / MEGABYTE,
            "first_step_s": trainer.first_step,
        }
        for engine, trainer in trainers.items()
    ]


def _print(model: str, batch: int, threads: int, rows: Sequence[Row]) -> None:
    """One line: milliseconds, what the portable engine's are of the others', and megabytes."""
    times = "".join(f"{row['ms_median']:>18.2f}" for row in rows)
    ratios = "".join(f"{row['portable_ratio']:>18.2f}" for row in rows if row["engine"] != "portable")
    sizes = "".join(f"{row['rss_mb']:>18.0f}" for row in rows)
    print(f"{model:24}{batch:>5}{threads:>4}{times}{ratios}{sizes}", flush=True)


def _report(rows: Sequence[Row], engines: Sequence[str]) -> dict[str, object]:
    starts: dict[str, dict[str, float]] = {}
    for row in rows:
        found = starts.setdefault(str(row["model"]), {})
        found[str(row["engine"])] = min(float(str(row["first_step_s"])), found.get(str(row["engine"]), float("inf")))
    return {
        "rows": rows,
        "install_bytes": {engine: install_bytes(engine) for engine in engines},
        "start_to_first_step_s": starts,
        "seed": SEED,
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
    }


def install_bytes(engine: str) -> dict[str, int]:
    """Bytes on disk by distribution: what an engine needs, with all that its metadata asks for."""
    wanted = ["numpy", "torch"] if engine == "torch" else ["numpy", *(name for name in RUNTIMES if _distribution(name))]
    sizes: dict[str, int] = {}
    while wanted:
        found = _distribution(wanted.pop())
        if found is None or found.name in sizes:
            continue
        files = [Path(str(found.locate_file(file))) for file in found.files or ()]
        sizes[found.name] = sum(path.stat().st_size for path in files if path.is_file())
        requirements = map(Requirement, found.requires or ())
        wanted += [r.name for r in requirements if r.marker is None or bool(r.marker.evaluate({"extra": ""}))]
    return sizes


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
