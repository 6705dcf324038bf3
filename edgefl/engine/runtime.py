"""ONNX Runtime, imported and configured in one place.

Model: all three distributions of ONNX Runtime install the module `onnxruntime`. The training build's own `__init__` imports
torch, onnx and more when it finds them, which a board must never do: 42 MB become hundreds. Registering an empty package for
`onnxruntime.training` before `import onnxruntime`, and refusing its `ortmodule`, keeps the on-device API and leaves the rest out.

Rules: as many threads as the caller says, and none that spin (a board has other work and a power budget); memory before speed
where they conflict; whatever ONNX Runtime raises becomes an `EngineError`.
"""

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from edgefl.engine.contract import VariantFiles
from edgefl.engine.graphfile import GraphFile, check_graph, parse_graph, read_graph
from edgefl.errors import EdgeflError, EngineError

REMEDY_INSTALL = "Install edgefl's dependencies on this machine: they choose the distribution of onnxruntime"


@cache
def onnxruntime() -> Any:
    """The module `onnxruntime`, imported on first use, without torch and onnx.

    Raises:
        EngineError: it is not installed or does not load here.
    """
    if "onnxruntime" not in sys.modules:
        _keep_training_package_small()
    try:
        import onnxruntime as module  # noqa: PLC0415  loaded only where a session is needed
    except ImportError as error:
        raise EngineError("ONNX Runtime cannot be loaded", found=str(error), remedy=REMEDY_INSTALL) from error
    module.set_default_logger_severity(3)
    return module


@cache
def training_api() -> Any:
    """The module `onnxruntime.training.api`.

    Raises:
        EngineError: this distribution of ONNX Runtime has none.
    """
    onnxruntime()
    try:
        import onnxruntime.training.api as module  # noqa: PLC0415  as above
    except ImportError as error:
        raise EngineError(
            "this machine's ONNX Runtime cannot train",
            expected="the distribution onnxruntime-training-cpu (x86-64 Linux, Python up to 3.12)",
            found=str(error),
            remedy="Use a profile with the portable engine, which runs everywhere",
        ) from error
    return module


def session_options(threads: int) -> Any:
    """Session options for a small machine.

    Args:
        threads: of one operator; at least 1.
    """
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Planning one block for all of a run's tensors costs a second copy of the arena: a fifth of the memory, for no time.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    places = worker_places(threads, os.sched_getaffinity(0))
    if places:
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
    return options


def worker_places(threads: int, allowed: Collection[int]) -> str:
    """A processor for each worker thread, as ONNX Runtime reads it (from 1); empty if there are fewer processors than threads.

    A sleeping worker that is woken beside the thread that waits for it may share that thread's processor for a whole operator:
    two threads are then no faster than one. The first thread stays free to move out of the way.
    """
    workers = sorted(allowed)[-(threads - 1) :] if 1 < threads <= len(allowed) else []
    return ";".join(str(processor + 1) for processor in workers)


def open_session(path: Path, threads: int) -> tuple[Any, GraphFile]:
    """An inference session on a graph file, and what the file declares, after its operators have been checked.

    Raises:
        EngineError: the file is missing, damaged, uses an operator that is not on the list, or does not load.
    """
    return _session(str(path), check_graph(read_graph(path)), threads)


def load_session(name: str, data: bytes, threads: int) -> tuple[Any, GraphFile]:
    """As `open_session`, from a graph file's content; `name` is for errors.

    Raises:
        EngineError: it is damaged, uses an operator that is not on the list, or does not load.
    """
    return _session(data, check_graph(parse_graph(name, data)), threads)


def _session(source: str | bytes, graph: GraphFile, threads: int) -> tuple[Any, GraphFile]:
    runtime = onnxruntime()
    with converted(f"graph {graph.name} does not load", remedy="Push the model again"):
        session = runtime.InferenceSession(source, session_options(threads), providers=["CPUExecutionProvider"])
    return session, graph


def role_path(files: VariantFiles, role: str) -> Path:
    """The file that has this role in a variant.

    Raises:
        EngineError: the variant has none.
    """
    path = files.paths.get(role)
    if path is None:
        raise EngineError(
            f"a variant for the engine {files.engine!r} lacks its {role!r} file",
            found=", ".join(sorted(files.paths)),
            remedy="Push the model again with this edgefl's server",
        )
    return path


@contextlib.contextmanager
def converted(problem: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever ONNX Runtime raises inside into an `EngineError` with this problem."""
    try:
        yield
    except EdgeflError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(problem, found=first[:300], remedy=remedy) from error


def available_engines() -> tuple[str, ...]:
    """Engines that this machine's ONNX Runtime can train with, found without importing it; none without ONNX Runtime."""
    directory = _installed()
    if directory is None:
        return ()
    return ("portable", "ort-training") if (directory / "training" / "api").is_dir() else ("portable",)


def _installed() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _keep_training_package_small() -> None:
    directory = _installed()
    if directory is not None and (directory / "training").is_dir():
        package = types.ModuleType("onnxruntime.training")
        package.__path__ = [str(directory / "training")]
        sys.modules["onnxruntime.training"] = package
        # None in sys.modules makes the import fail, which onnxruntime expects and passes over.
        sys.modules["onnxruntime.training.ortmodule"] = None  # type: ignore[assignment]  # a documented value that the stub lacks
