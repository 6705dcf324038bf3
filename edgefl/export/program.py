"""A traced graph as the program that torch's ONNX exporter takes, without tracing it a second time.

Model: `torch.export.export` of a graph that is traced already walks through all of it again, which takes as long as the first
trace, and arrives at the same nodes. What it adds is the signature, which can be said at once: the inputs and the outputs.

Rules: a graph that writes into tensors, holds constants or other graphs, or has a node of unknown value, does not pass for a
program as it is; torch traces it again.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
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
    inputs = [TensorArgument(node.name) for node in traced.graph.find_nodes(op="placeholder")]
    outputs = [TensorArgument(node.name) for node in cast("tuple[fx.Node, ...]", traced.graph.output_node().args[0])]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, argument, None) for argument in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, argument, None) for argument in outputs],
    )
    taken, given = pytree.tree_structure((tuple(arguments), {})), pytree.tree_structure(tuple(outputs))
    call = ModuleCallSignature([*inputs], [*outputs], taken, given)
    return ExportedProgram(
        traced, traced.graph, signature, {}, {}, [ModuleCallEntry("", call)], example_inputs=(tuple(arguments), {})
    )


def _complete(graph: fx.Graph) -> bool:
    """Whether a graph is only inputs, operators that write nothing, each with its value, and outputs."""
    for node in graph.nodes:
        if node.op in {"placeholder", "output"}:
            continue
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001  an operator's schema
        if node.op != "call_function" or writes or "val" not in node.meta:
            return False
    return True
