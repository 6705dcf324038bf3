"""What a training process loads and how much memory it takes, seen from outside."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgefl.engine.runtime import available_engines
from edgefl.errors import EngineError

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 1_000_000

IMPORTS = """
import sys
import edgefl.engine.open, edgefl.engine.probe
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "onnxruntime", "onnxscript"}))
"""

TRAINS = """
import re, sys
from pathlib import Path
import msgspec, numpy as np
from edgefl.engine.open import open_engine
from edgefl.engine.contract import VariantFiles
from edgefl.examples import Examples
from edgefl.layout import Layout

directory, engine = Path(sys.argv[1]), sys.argv[2]
layout = msgspec.msgpack.decode((directory / "layout").read_bytes(), type=Layout)
files = VariantFiles(engine, layout, (1, 28, 28), 10, 32, {p.name: p for p in directory.iterdir()})
loaded = open_engine(files, threads=1)
loaded.set_vector((0.01 * np.random.default_rng(0).standard_normal(layout.size)).astype(np.float32))
rng = np.random.default_rng(1)
examples = Examples(rng.standard_normal((100, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 100))
assert loaded.train(examples, epochs=2, learning_rate=0.01, rng=rng).steps == 8
loaded.evaluate(examples)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "onnxscript", "h5py", "sympy"}))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from edgefl.engine.runtime import available_engines
from edgefl.errors import EngineError
from edgefl.engine.runtime import onnxruntime, training_api
try:
    onnxruntime() if sys.argv[1] == "onnxruntime" else training_api()
except EngineError as error:
    print(error)
"""


def run(program, *arguments):
    """Output lines of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_importing_the_engines_loads_nothing_heavy():
    """Neither torch nor onnx nor ONNX Runtime: the last only with the first session."""
    assert run(IMPORTS) == ["[]"]


@pytest.mark.parametrize(("engine", "limit"), [("portable", 140), ("ort-training", 160)])
def test_training_loads_neither_torch_nor_onnx_and_stays_small(tmp_path, record_property, engine, limit):
    """A process trains the CNN of 1.66 million parameters in a board's memory, though torch and onnx are installed here."""
    pytest.importorskip("torch")
    if engine not in available_engines():
        pytest.skip("needs onnxruntime-training-cpu")
    import msgspec

    from edgefl.export.graphs import export_graphs
    from edgefl.export.models import load_factory

    exported = export_graphs(load_factory("mnist-cnn"), 1.0, engine, 32)
    for role, data in {**exported.graphs, "layout": msgspec.msgpack.encode(exported.layout)}.items():
        (tmp_path / role).write_bytes(data)
    modules, peak = run(TRAINS, str(tmp_path), engine)
    record_property("peak_rss_mb", int(peak) * 1024 / MEGABYTE)
    print(f"{engine}: {int(peak) * 1024 / MEGABYTE:.0f} MB")
    assert modules == "[]"
    assert int(peak) * 1024 < limit * MEGABYTE


@pytest.mark.parametrize(
    ("module", "words"),
    [("onnxruntime", "ONNX Runtime cannot be loaded"), ("onnxruntime.training.api", "this machine's ONNX Runtime cannot train")],
)
def test_a_missing_runtime_is_an_error_with_a_remedy(module, words):
    """A machine without ONNX Runtime, or without its training build, says what to do."""
    (message,) = run(WITHOUT, module)
    assert words in message
    assert message.count(". ") >= 1


def test_a_probe_survives_a_child_that_dies(tmp_path, monkeypatch):
    """A crash inside the runtime, as from a faulty kernel, is an error about the variant."""
    from edgefl.engine import probe as probing
    from edgefl.engine.contract import VariantFiles
    from edgefl.examples import Examples
    from edgefl.layout import Layout, Tensor

    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\nkill -FPE $$\n")
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    files = VariantFiles("portable", Layout((Tensor("a", (2,)),)), (2,), 2, 1, {})
    trial = Examples(np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.int64))
    with pytest.raises(EngineError, match=r"crashes ONNX Runtime.*SIGFPE"):
        probing.probe(files, np.zeros(2, dtype=np.float32), [trial], 0.1)


def test_a_probe_reports_what_the_engine_says(tmp_path):
    """An error of the engine comes back in its words."""
    from edgefl.engine.contract import VariantFiles
    from edgefl.engine.probe import probe
    from edgefl.examples import Examples
    from edgefl.layout import Layout, Tensor

    files = VariantFiles("portable", Layout((Tensor("a", (2,)),)), (2,), 2, 1, {"infer": tmp_path / "infer"})
    trial = Examples(np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.int64))
    with pytest.raises(EngineError, match="graph infer cannot be read"):
        probe(files, np.zeros(2, dtype=np.float32), [trial], 0.1)


def test_the_engines_of_a_machine_are_known_without_loading_one():
    """The agent reports them, and must stay small."""
    program = "import sys; from edgefl.engine.runtime import available_engines as a; print(a(), 'onnxruntime' in sys.modules)"
    (line,) = run(program)
    assert line == f"{available_engines()} False"
    assert "portable" in available_engines()
