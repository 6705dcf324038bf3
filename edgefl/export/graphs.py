"""Everything that a device needs to run one width of a model with one engine, as bytes by role.

Roles: `train`, `eval`, `infer`; for the engine `ort-training` also `optimizer` and `checkpoint`; for `inference`, which only
answers, `eval` and `infer` alone. Weights are in none of them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgefl.engine.contract import VariantFiles
from edgefl.errors import ModelError
from edgefl.export import batchnorm, recurrent
from edgefl.export.artifacts import REMEDY_PORTABLE, export_artifacts
from edgefl.export.forward import forward_graph, trace_forward
from edgefl.export.loss_graphs import evaluation_graph
from edgefl.export.models import ModelSource
from edgefl.export.slim import slim
from edgefl.export.step import export_step
from edgefl.export.tensors import layout_of
from edgefl.layout import Layout
from edgefl.profile import ENGINES, NATIVE, PORTABLE


@dataclass(frozen=True, slots=True)
class ExportedGraphs:
    """Graphs of one variant: the layout of its flat vector, and file contents by role."""

    layout: Layout
    graphs: Mapping[str, bytes]


def variant_files(source: ModelSource, exported: ExportedGraphs, engine: str, batch: int, directory: Path) -> VariantFiles:
    """Write the graphs to files named by role, for an engine on this machine.

    Args:
        source: the model.
        exported: what `export_graphs` gave.
        engine: it was exported for.
        batch: it was exported with.
        directory: exists; files of the same names are overwritten.
    """
    paths = {role: directory / role for role in exported.graphs}
    for role, path in paths.items():
        path.write_bytes(exported.graphs[role])
    return VariantFiles(engine, exported.layout, source.input_shape, source.classes, batch, paths, source.recipe)


def export_graphs(source: ModelSource, width: float, engine: str, batch: int) -> ExportedGraphs:
    """Export one width of a model for one engine.

    Args:
        source: the model.
        width: in (0, 1].
        engine: `portable`, `ort-training` or `inference`.
        batch: rows of a training step; fixed in the portable graph.

    Raises:
        ModelError: the model cannot be exported; the text names operator and layer where known.
        EngineError: `ort-training` asked for without onnxruntime-training on this machine.
    """
    if engine not in ENGINES:
        raise ModelError(f"no engine is called {engine!r}", expected=" or ".join(ENGINES))
    if batch < 1:
        raise ModelError("a batch needs rows", expected="at least 1", found=f"{batch}")
    if source.exits and engine == NATIVE:
        raise ModelError(f"onnxruntime-training cannot train the exits of model {source.name!r}", remedy=REMEDY_PORTABLE)
    module = source.build(width)
    layout = layout_of(module)
    recurrent.attach(module)
    statistics = batchnorm.attach(module, source.name)
    layers = functools.cache(lambda: trace_forward(source, module).graph)
    if engine == NATIVE:  # its step is made of the graph in evaluation mode, in which no layer draws random numbers
        layers()
    infer = forward_graph(source, module, layers)
    graphs: dict[str, bytes] = {}
    if engine == NATIVE:
        graphs |= export_artifacts(infer, layout, source.name, source.recipe)
    elif engine == PORTABLE:
        graphs["train"] = export_step(source, module, statistics, batch, layers)
    graphs["eval"] = slim(evaluation_graph(infer, source.recipe))
    graphs["infer"] = slim(infer)
    return ExportedGraphs(layout, graphs)


def forward_only(exported: ExportedGraphs) -> ExportedGraphs:
    """What the engine `inference` has of the graphs of one that trains: the same `eval` and `infer`."""
    return ExportedGraphs(exported.layout, {role: exported.graphs[role] for role in ("eval", "infer")})
