"""The files of a variant: graphs exported and compared with torch, weights encoded, golden outputs computed; each once.

Model. A *bench* is the place where the variants of one push are made. What depends on structure and engine alone (graphs) is
shared by all precisions of a structure; what several profiles come to is made once.

Rule: golden outputs and accuracy are those of the weights as a device decodes them, through the exported graph.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgefl.codec.golden import encode_golden, golden_inputs, golden_length
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.compress.budget import Candidate
from edgefl.compress.forms import Form
from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, export_graphs, forward_only
from edgefl.export.models import ModelSource
from edgefl.export.verify import random_examples, verify_graphs
from edgefl.layout import Float32
from edgefl.profile import INFERENCE, PORTABLE
from edgefl.server.cuts import Cut, sizes_of_graphs
from edgefl.server.rehearsal import Subject, rows_for
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import FileRef


class Bench:
    """Makes the files of variants.

    Args:
        source: the model.
        parent: its weights at full width.
        blobs: receives the files.
        batch: rows of a training step.
        holdout: examples to measure accuracy on, shaped for the model, or None.
        say: told what is being done, a line at a time.
    """

    def __init__(
        self,
        source: ModelSource,
        parent: Float32,
        blobs: BlobStore,
        *,
        batch: int,
        holdout: Examples | None,
        say: Callable[[str], None],
    ) -> None:
        self.source = source
        self.batch = batch
        self._parent = parent
        self._blobs = blobs
        self._holdout = holdout
        self._say = say
        self._exports: dict[tuple[str, str], ExportedGraphs] = {}
        self._goldens: dict[tuple[str, str], bytes] = {}
        self._accuracies: dict[tuple[str, str], float | None] = {}
        self._resting: dict[tuple[str, Form], bytes] = {}

    def exported(self, engine: str, structure: str) -> bool:
        """Whether the graphs of a structure are there, and the length of its files is therefore known."""
        return (engine, structure) in self._exports

    def any_exported(self, engine: str) -> bool:
        """Whether the engine is known to be able to run one structure."""
        return any(kind == engine for kind, _ in self._exports)

    def graph_bytes(self, engine: str, cuts: Mapping[str, Cut]) -> Mapping[str, int]:
        """Bytes of graphs and golden file by structure; of those that are not exported yet, what they take at least."""
        golden = golden_length(self.source.input_shape, self.source.classes)
        known = {name: _total(found) + golden for (kind, name), found in self._exports.items() if kind == engine}
        return sizes_of_graphs(cuts, known)

    def export(self, engine: str, cut: Cut) -> None:
        """Export a structure and compare it with torch. Raises ModelError, EngineError."""
        structure = cut.structure
        if engine == INFERENCE and (PORTABLE, structure.name) in self._exports:
            self._exports[engine, structure.name] = forward_only(self._exports[PORTABLE, structure.name])
            return
        self._say(f"exporting {structure.name} for {engine}")
        exported = export_graphs(cut.source, structure.width, engine, self.batch)
        if exported.layout != structure.layout:
            raise ModelError(f"the factory of model {self.source.name!r} builds another model every time")
        self._say(f"comparing {structure.name} for {engine} with torch")
        verify_graphs(cut.source, structure.width, exported, engine=engine, batch=self.batch)
        self._exports[engine, structure.name] = exported

    def rests(self, structure: str, form: Form, weights: bytes) -> None:
        """Take the weights file of a structure that was retrained; what has no form is of the parent's weights."""
        self._resting[structure, form] = weights

    def weights(self, candidate: Candidate, cut: Cut) -> bytes:
        """The weights file of a candidate. Raises ModelError."""
        if candidate.form:
            return self._resting[candidate.structure.name, candidate.form]
        return encode_weights(cut.slice(self._parent), candidate.layout, candidate.precision)

    def infer(self, engine: str, structure: str) -> bytes:
        """The `infer` graph of an exported structure."""
        return self._exports[engine, structure].graphs["infer"]

    def made(self, engine: str, candidate: Candidate, cut: Cut) -> tuple[FileRef, ...]:
        """All files of a candidate whose structure is exported, in the blob store; `weights` last.

        Raises:
            ModelError: the weights cannot be written.
            EngineError: the engine fails with them.
            StoreError: the files cannot be written.
        """
        weights = self.weights(candidate, cut)
        graphs = self._exports[engine, candidate.structure.name].graphs
        contents = {**graphs, "golden": self._golden(engine, candidate, graphs, weights), "weights": weights}
        return tuple(self.stored(role, data) for role, data in contents.items())

    def stored(self, role: str, data: bytes) -> FileRef:
        """A file of this role, in the blob store. Raises StoreError."""
        self._blobs.put(data)
        return file_ref(role, data)

    def subject(self, engine: str, candidate: Candidate, files: Sequence[FileRef]) -> Subject:
        """What a rehearsal runs."""
        source = self.source
        shape, classes, examples = source.input_shape, source.classes, random_examples(source, rows_for(self.batch), seed=0)
        return Subject(candidate.name, engine, candidate.layout, shape, classes, self.batch, source.recipe, files, examples)

    def accuracy(self, engine: str, candidate: Candidate, files: Sequence[FileRef]) -> float | None:
        """Of the decoded weights through the exported graph on the hold-out examples, in [0, 1]; None without any."""
        if self._holdout is None:
            return None
        key = (engine, candidate.name)
        if key not in self._accuracies:
            self._say(f"measuring {candidate.name} on {len(self._holdout)} examples")
            paths = {ref.role: self._blobs.path(ref.sha256) for ref in files}
            opened = self._opened(engine, candidate, paths, self._blobs.get(files[-1].sha256))
            self._accuracies[key] = opened.evaluate(self._holdout).accuracy
        return self._accuracies[key]

    def measured(self, engine: str) -> Mapping[str, float]:
        """Accuracies that were measured so far for an engine, by name of the variant."""
        return {name: found for (kind, name), found in self._accuracies.items() if kind == engine and found is not None}

    def _golden(self, engine: str, candidate: Candidate, graphs: Mapping[str, bytes], weights: bytes) -> bytes:
        """A few inputs, and what the exported graph makes of them with the weights as a device decodes them."""
        key = (engine, candidate.name)
        if key not in self._goldens:
            with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
                paths = {role: Path(directory) / role for role in graphs}
                for role, path in paths.items():
                    path.write_bytes(graphs[role])
                inputs = golden_inputs(self.source.input_shape, self.source.classes)
                outputs = self._opened(engine, candidate, paths, weights).predict(inputs)
            self._goldens[key] = encode_golden(inputs, outputs)
        return self._goldens[key]

    def _opened(self, engine: str, candidate: Candidate, paths: Mapping[str, Path], weights: bytes) -> Engine:
        shape, classes = self.source.input_shape, self.source.classes
        files = VariantFiles(engine, candidate.layout, shape, classes, self.batch, paths, self.source.recipe)
        opened = open_engine(files, threads=1)
        opened.set_vector(decode_weights(weights, candidate.layout))
        return opened


def _total(exported: ExportedGraphs) -> int:
    return sum(map(len, exported.graphs.values()))
