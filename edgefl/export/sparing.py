"""Work of torch's ONNX exporter that need not be done for each graph: up to half of the time of an export.

Model: the exporter reads the source of its 500 translations to learn their domain, derives the signature of each, and traces the
program once more to take apart the operators that it has no translation for; the tracer asks for torch's thousands of operators
once per namespace, and writes down for each node which lines of Python made it. The first two and the operators come to the same
in every export of a process; taking apart changes nothing where nothing is to be taken apart; nobody reads the lines.

Rules: torch and onnxscript have no public way to say any of this. Each part is guarded by itself: where theirs has changed, an
export is as slow as it was, and gives the same graph.
"""

import contextlib
import functools
from typing import Any

import torch
from torch.export import ExportedProgram


@functools.cache
def spare() -> None:
    """Keep torch's exporter from doing the same again, from now on in this process."""
    for keep in (_translations, _signatures, _decomposition, _implicit, _origins):
        with contextlib.suppress(ImportError, AttributeError):
            keep()


def _once(module: Any, name: str) -> None:
    """Let a function of a module answer from memory what it has been asked before."""
    setattr(module, name, functools.cache(getattr(module, name)))


def _translations() -> None:
    from torch.onnx._internal import _lazy_import  # noqa: PLC0415  not there in every torch

    _once(getattr(_lazy_import, "onnxscript_apis"), "get_torchlib_ops")  # noqa: B009  not exported by name


def _signatures() -> None:
    from torch.onnx._internal.exporter import _schemas  # noqa: PLC0415  as above

    _once(_schemas, "op_signature_from_function")


def _decomposition() -> None:
    from torch.onnx._internal.exporter import _fx_passes  # noqa: PLC0415  as above

    decompose = _fx_passes.decompose_with_registry

    def decompose_where_needed(program: ExportedProgram, registry: Any) -> ExportedProgram:
        return program if _translatable(program, registry) else decompose(program, registry)

    setattr(_fx_passes, decompose.__name__, decompose_where_needed)


def _translatable(program: ExportedProgram, registry: Any) -> bool:
    """Whether every operator of a program has a translation as it stands, and none writes into its operands."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001  an operator's schema
        if mutable or not registry.is_registered(node.target):
            return False
    return True


def _implicit() -> None:
    from torch._export import utils  # noqa: PLC0415  as above

    _once(utils, "_materialize_cpp_cia_ops")


def _origins() -> None:
    from torch.fx import config  # noqa: PLC0415  as above

    config.do_not_emit_stack_traces = True
