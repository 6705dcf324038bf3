"""One engine in a process of its own, that takes a step when it is told to: so that engines can be timed in turns.

Model: `python -m benchmarks.trainer REQUEST` loads what the request file names, trains one step, and writes a line. Then it reads
numbers of steps from its input and answers each with the milliseconds per step; a zero ends it, and the answer is its largest
resident size in bytes. No other engine is loaded in the process, so that this size is the engine's own.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edgefl.engine.contract import VariantFiles
from edgefl.engine.open import open_engine
from edgefl.examples import Examples
from edgefl.layout import Layout

LEARNING_RATE = 1e-3


class Request(msgspec.Struct, frozen=True):
    """What to train.

    Attributes:
        engine: `portable`, `ort-training` or `torch`.
        factory: the model's name, for torch.
        layout, input_shape, classes, batch, paths: of the variant, see `VariantFiles`; `paths` is empty for torch.
        threads: of one operator.
        seed: of parameters and examples.
    """

    engine: str
    factory: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    paths: dict[str, str]
    threads: int
    seed: int


class Trainer:
    """A running trainer process, seen from its parent.

    Attributes:
        first_step: seconds from the start of the process to the end of its first step.
    """

    def __init__(self, request: Request, directory: Path) -> None:
        """Start the process and wait for its first step."""
        path = directory / "request"
        path.write_bytes(msgspec.msgpack.encode(request))
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.trainer", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()
        self.first_step = time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Milliseconds per step of this many steps."""
        return float(self._ask(steps))

    def close(self) -> int:
        """End the process; the bytes of its largest resident size."""
        size = int(self._ask(0))
        self._process.communicate()
        return size

    def _ask(self, steps: int) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a trainer ended with exit status {self._process.wait()}")
        return line


def main() -> None:
    """Serve the request in the file `sys.argv[1]`."""
    request = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Request)
    rng = np.random.default_rng(request.seed)
    x = rng.standard_normal((request.batch, *request.input_shape)).astype(np.float32)
    examples = Examples(x, rng.integers(0, request.classes, request.batch))
    train = (_in_torch if request.engine == "torch" else _in_engine)(request, examples)
    train(1)
    print(1, flush=True)
    for line in sys.stdin:
        steps = int(line)
        if steps == 0:
            break
        start = time.perf_counter()
        train(steps)
        print((time.perf_counter() - start) / steps * 1000.0, flush=True)
    largest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    print(int(largest[1]) * 1024 if largest else 0, flush=True)


def _in_engine(request: Request, examples: Examples) -> Callable[[int], object]:
    """Train full batches; an epoch has one."""
    paths = {role: Path(path) for role, path in request.paths.items()}
    files = VariantFiles(request.engine, request.layout, request.input_shape, request.classes, request.batch, paths)
    engine = open_engine(files, threads=request.threads)
    rng = np.random.default_rng(request.seed)
    engine.set_vector((0.05 * rng.standard_normal(request.layout.size)).astype(np.float32))
    return lambda steps: engine.train(examples, epochs=steps, learning_rate=LEARNING_RATE, rng=rng)


def _in_torch(request: Request, examples: Examples) -> Callable[[int], object]:
    """What a torch user writes; the batch is gathered anew in each step, as the engines do."""
    import torch  # noqa: PLC0415  in this engine's process only

    from edgefl.export.models import load_factory  # noqa: PLC0415

    torch.set_num_threads(request.threads)
    torch.manual_seed(request.seed)
    module = load_factory(request.factory).build()
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)

    def train(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randperm(len(x))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            loss.item()

    return train


if __name__ == "__main__":
    main()
