"""One way to open a variant, whichever engine it was made for."""

from collections.abc import Callable, Mapping

from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.ort_training import OrtTrainingEngine
from edgefl.engine.portable import PortableEngine
from edgefl.errors import EngineError

ENGINES: Mapping[str, Callable[..., Engine]] = {
    "portable": PortableEngine,
    "ort-training": OrtTrainingEngine,
    "inference": PortableEngine,  # which loads its training graph with the first training, and here none ever comes
}


def open_engine(files: VariantFiles, *, threads: int) -> Engine:
    """Load a variant.

    Args:
        files: the variant on disk.
        threads: of one operator; at least 1.

    Raises:
        EngineError: no such engine, ONNX Runtime is missing or is no training build, or a file is damaged, uses an operator
            that is not allowed, or does not belong to the layout.
    """
    engine = ENGINES.get(files.engine)
    if engine is None:
        raise EngineError(
            f"no engine is called {files.engine!r}", expected=" or ".join(ENGINES), remedy="Upgrade edgefl on this device"
        )
    return engine(files, threads=threads)
