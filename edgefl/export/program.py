"""A traced graph as the program that torch's ONNX exporter takes, without tracing it more often than needed.

Model: `torch.export.export` of a graph that is traced already walks through all of it again, which takes as long as the first
trace, and arrives at the same nodes. What it adds is the signature, which can be said at once: the inputs and the outputs.
In the same way `run_decompositions` traces a program twice, first to learn what it writes into; of one that writes nothing, one
trace computes the same.

Rules: a graph that writes into tensors, holds constants or other graphs, or has a node of unknown value, does not pass for a
program as it is; torch traces it again. So does a program with an operator that the table keeps and one trace would take apart.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from edgefl.export.tracing import Traced


def program_of(traced: fx.GraphModule, arguments: Sequence[Tensor]) -> ExportedProgram:
    """The program of a traced function of tensors to a tuple of tensors.

    Args:
        traced: as `make_fx` gives it; changed if it is taken as it is.
        arguments: example values of its inputs.
    """
    if not _complete(traced.graph):
        traced.recompile()  # what is traced again is its code
        return torch.export.export(Traced(traced), tuple(arguments), strict=False)
    return _signed(traced, arguments)


def decomposed(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """A program in the operators that a table of decompositions leaves."""
    found = _in_one_trace(program, dict(table))
    return program.run_decompositions(dict(table)) if found is None else found


def _in_one_trace(program: ExportedProgram, table: dict[Any, Callable[..., Any]]) -> ExportedProgram | None:
    """The same as `run_decompositions`; None if one trace would come to something else, or this torch cannot say whether."""
    try:
        from torch._export.utils import _is_preservable_cia_op  # noqa: PLC0415  private: may not be there
        from torch._guards import detect_fake_mode  # noqa: PLC0415  as above
    except ImportError:
        return None
    given = program.graph.find_nodes(op="placeholder")
    plain = len(program.graph_signature.user_inputs) == len(given) and _complete(program.graph)
    operators = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}  # noqa: SLF001  their type
    if program.example_inputs is None or not plain or any(map(_is_preservable_cia_op, operators - table.keys())):
        return None
    values = [node.meta["val"] for node in given]
    with detect_fake_mode(values) or contextlib.nullcontext():
        trace = make_fx(fx.Interpreter(program.graph_module).run, decomposition_table=table, tracing_mode="symbolic")
        traced = trace(*values)
    traced.graph.eliminate_dead_code()
    if not _complete(traced.graph):
        return None
    made = program.call_spec.out_spec
    return _signed(traced, program.example_inputs[0], made=made, ranges=program.range_constraints)


def _signed(
    traced: fx.GraphModule, arguments: Sequence[Tensor], *, made: pytree.TreeSpec | None = None, ranges: Mapping[Any, Any] = {}
) -> ExportedProgram:
    """A complete graph with its signature; `made` is how its outputs are arranged (a tuple), `ranges` what extents may be."""
    inputs = [TensorArgument(node.name) for node in traced.graph.find_nodes(op="placeholder")]
    outputs = [TensorArgument(node.name) for node in cast("tuple[fx.Node, ...]", traced.graph.output_node().args[0])]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, argument, None) for argument in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, argument, None) for argument in outputs],
    )
    taken, made = pytree.tree_structure((tuple(arguments), {})), made or pytree.tree_structure(tuple(outputs))
    call = ModuleCallSignature([*inputs], [*outputs], taken, made)
    calls = [ModuleCallEntry("", call)]
    return ExportedProgram(traced, traced.graph, signature, {}, dict(ranges), calls, example_inputs=(tuple(arguments), {}))


def _complete(graph: fx.Graph) -> bool:
    """Whether a graph is only inputs, operators that write nothing, each with its value, and outputs."""
    for node in graph.nodes:
        if node.op in {"placeholder", "output"}:
            continue
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001  an operator's schema
        if node.op != "call_function" or writes or "val" not in node.meta:
            return False
    return True
