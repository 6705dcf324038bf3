"""Runs a variant in a process of its own and reports what it computed, in how much memory, and how fast.

Model: `probe` writes a request to a file, starts `python -m edgefl.engine.probe REQUEST ANSWER`, and reads the answer. The
child is what a board's trainer is: it loads no torch and no onnx, and its peak memory is the variant's. A model that crashes
the runtime (a kernel of onnxruntime-training that divides by zero, say) takes the child down and becomes an error here.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import EdgeflError, EngineError
from edgefl.examples import Examples
from edgefl.layout import Float32, Layout
from edgefl.profile import trains
from edgefl.recipe import Recipe

TIMEOUT = 600.0
"""Seconds for everything that a probe runs."""
STEPS = 2
"""An optimiser's state shows in the second."""
TIMED_STEPS = 5


class Trial(msgspec.Struct, frozen=True, array_like=True):
    """Examples to try, as raw values: float32, and int64 labels or float32 targets of so many columns."""

    x: bytes
    y: bytes
    columns: int | None


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A variant and what to do with it."""

    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    paths: dict[str, str]
    vector: bytes
    learning_rate: float
    trials: tuple[Trial, ...]
    recipe: Recipe
    proximal: float
    mutual: float = 1.0
    threads: int = 1


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What one trial gave, each from the same start: outputs, evaluated loss, loss of the first step, parameters after all.

    Of an engine that does not train the loss of the step is 0 and the parameters are what they were.
    """

    logits: bytes
    evaluated: float
    trained: float
    vector: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a probe found.

    Attributes:
        results: one per trial.
        peak_rss: bytes of the whole process at its largest; 0 where the system does not tell.
        step_seconds: of the fastest full training step; 0 of an engine that does not train.
        error: what went wrong instead, empty when nothing did.
    """

    results: tuple[Result, ...]
    peak_rss: int
    step_seconds: float
    error: str = ""


def probe(
    files: VariantFiles,
    vector: Float32,
    trials: Sequence[Examples],
    learning_rate: float,
    proximal: float = 0.0,
    mutual: float = 1.0,
    *,
    threads: int = 1,
) -> Answer:
    """Predict, evaluate and, if the engine does, train `STEPS` steps on each trial, starting from `vector` each time.

    Args:
        files: the variant.
        vector: its parameters.
        trials: at least one; each of at most `files.batch` examples.
        learning_rate: of the steps.
        proximal: weight of the proximal term.
        mutual: weight of what exits learn of each other.
        threads: of one operator.

    Raises:
        EngineError: the variant does not load or run, or the process died or took longer than `TIMEOUT`.
    """
    request = Request(
        files.engine,
        files.layout,
        files.input_shape,
        files.classes,
        files.batch,
        {role: str(path.resolve()) for role, path in files.paths.items()},
        vector.tobytes(),
        learning_rate,
        tuple(Trial(t.x.tobytes(), t.y.tobytes(), None if t.y.ndim == 1 else t.y.shape[1]) for t in trials),
        files.recipe,
        proximal,
        mutual,
        threads,
    )
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        asked, answered = Path(directory) / "request", Path(directory) / "answer"
        asked.write_bytes(msgspec.msgpack.encode(request))
        _run_child(asked, answered)
        answer = msgspec.msgpack.decode(answered.read_bytes(), type=Answer)
    if answer.error:
        raise EngineError("the variant does not run on this machine", found=answer.error)
    return answer


def _run_child(asked: Path, answered: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "edgefl.engine.probe", str(asked), str(answered)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError("the variant does not finish on this machine", expected=f"at most {TIMEOUT:g} s") from None
    if done.returncode < 0:
        raise EngineError(
            "the variant crashes ONNX Runtime",
            found=signal.Signals(-done.returncode).name,
            remedy="Use a profile with the other engine, or simpler layers",
        )
    if done.returncode or not answered.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError("the probe of the variant failed", found=last[:300])


def answer_to(request: Request) -> Answer:
    """Do what a request asks, in this process."""
    paths = {role: Path(path) for role, path in request.paths.items()}
    files = VariantFiles(
        request.engine, request.layout, request.input_shape, request.classes, request.batch, paths, request.recipe
    )
    vector = np.frombuffer(request.vector, dtype=np.float32)
    try:
        engine = open_engine(files, threads=request.threads)
        trials = [_examples(trial, files.input_shape) for trial in request.trials]
        largest = max(trials, key=len)
        _try(engine, vector, largest, request)
        peak = _peak_rss()  # before results pile up, which no board keeps
        seconds = _step_seconds(engine, vector, largest) if trains(request.engine) else 0.0
        results = tuple(_try(engine, vector, trial, request) for trial in trials)
    except EdgeflError as error:
        return Answer((), 0, 0.0, str(error))
    return Answer(results, peak, seconds)


def _examples(trial: Trial, input_shape: tuple[int, ...]) -> Examples:
    x = np.frombuffer(trial.x, dtype=np.float32).reshape(-1, *input_shape)
    if trial.columns is None:
        return Examples(x, np.frombuffer(trial.y, dtype=np.int64))
    return Examples(x, np.frombuffer(trial.y, dtype=np.float32).reshape(len(x), trial.columns))


def _try(engine: Engine, vector: Float32, examples: Examples, request: Request) -> Result:
    engine.set_vector(vector)
    logits = engine.predict(examples.x)
    evaluation = engine.evaluate(examples)
    if not trains(request.engine):
        return Result(logits.tobytes(), evaluation.loss, 0.0, vector.tobytes())
    rng = np.random.default_rng(0)
    rate, mu, mutual = request.learning_rate, request.proximal, request.mutual
    trained = engine.train(examples, epochs=STEPS, learning_rate=rate, rng=rng, proximal=mu, mutual=mutual)
    return Result(logits.tobytes(), evaluation.loss, trained.loss_before, engine.vector().tobytes())


def _step_seconds(engine: Engine, vector: Float32, examples: Examples) -> float:
    engine.set_vector(vector)
    fastest = float("inf")
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        engine.train(examples, epochs=1, learning_rate=1e-6, rng=np.random.default_rng(0))
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _peak_rss() -> int:
    """The largest resident size that this program has had. Not `getrusage`, whose maximum an exec inherits from the parent."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(match.group(1)) * 1024 if match else 0


def main(arguments: Sequence[str]) -> None:
    """Answer the request in the file `arguments[0]` into the file `arguments[1]`."""
    request = msgspec.msgpack.decode(Path(arguments[0]).read_bytes(), type=Request)
    Path(arguments[1]).write_bytes(msgspec.msgpack.encode(answer_to(request)))


if __name__ == "__main__":
    main(sys.argv[1:])
