"""Making variants: planned to fit a profile, exported, compared with torch, written, measured.

Model. The parent is the model at full width. For a profile the planner (`edgefl.compress.budget`) picks width and precision;
graphs are exported, compared with torch and measured; if the real files are too large the planner is asked again with what is
known now. Profiles that come to the same width, precision and engine share everything but the manifest.

Rule: what is measured is what is sent: bytes of the files on disk, accuracy of the decoded weights through the exported graph,
and the golden outputs, which every device compares its own with before it makes the version its active one.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefl.codec.golden import encode_golden, golden_inputs, golden_length
from edgefl.codec.weights import TRAINABLE, decode_weights, encode_weights
from edgefl.compress.budget import WIDTHS, Candidate, candidates, choose
from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, export_graphs
from edgefl.export.models import ModelSource
from edgefl.export.tensors import layout_of
from edgefl.export.verify import verify_graphs
from edgefl.layout import Float32, Layout, nested_index
from edgefl.profile import Profile
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import FileRef

NATIVE, PORTABLE = "ort-training", "portable"


@dataclass(frozen=True, slots=True)
class Made:
    """A variant whose files are in the blob store.

    Attributes:
        profile: for which boards.
        engine: that trains it: the profile's, or `portable` where the profile's cannot train this model.
        candidate: width, precision, layout and sizes.
        files: all of them, `weights` last.
        accuracy: in [0, 1] of the decoded weights on the hold-out examples; None without them.
    """

    profile: Profile
    engine: str
    candidate: Candidate
    files: tuple[FileRef, ...]
    accuracy: float | None


class Workshop:
    """Makes variants of one model and remembers what several profiles share.

    Args:
        source: the model.
        parent: its weights at full width, float32, shape `(layout.size,)`.
        blobs: receives the files.
        batch: rows of a training step.
        holdout: examples to measure accuracy on, or None.
        known: profiles to suggest when one is too small.
        on_progress: told what is being done, a line at a time.

    Raises:
        ModelError: a narrower model is no part of the full one.
        DataError: the hold-out examples do not fit the model.
    """

    def __init__(
        self,
        source: ModelSource,
        parent: Float32,
        blobs: BlobStore,
        *,
        batch: int,
        holdout: Examples | None,
        known: Iterable[Profile],
        on_progress: Callable[[str], None],
    ) -> None:
        self._source = source
        self._parent = parent
        self._blobs = blobs
        self._batch = batch
        self._say = on_progress
        self._holdout = holdout.shaped(source.input_shape, source.classes, source.recipe.loss) if holdout else None
        self._layouts = _layouts(source)
        self._known = [(profile.name, profile.storage_bytes) for profile in known if profile.engine != "none"]
        self._exports: dict[tuple[str, float], ExportedGraphs] = {}
        self._accuracies: dict[tuple[str, str], float | None] = {}
        self._goldens: dict[tuple[str, str], bytes] = {}
        self._unfit: set[str] = set()

    def make(self, profile: Profile) -> Made:
        """The variant for a profile, in the blob store. Raises FitError, ModelError, EngineError, StoreError."""
        engine, candidate = self._engine_and_plan(profile)
        exported = self._exports[engine, candidate.width]
        weights = encode_weights(self._slice(candidate.layout), candidate.layout, candidate.precision)
        golden = self._golden(engine, candidate, exported, weights)
        contents = {**exported.graphs, "golden": golden, "weights": weights}
        files = tuple(file_ref(role, data) for role, data in contents.items())
        for data in contents.values():
            self._blobs.put(data)
        self._check_on_disk(profile, candidate, files)
        return Made(profile, engine, candidate, files, self._accuracy(engine, candidate, files))

    def _engine_and_plan(self, profile: Profile) -> tuple[str, Candidate]:
        """The profile's engine and what fits; the portable engine where the native one cannot train this model."""
        if profile.engine != NATIVE or NATIVE in self._unfit:
            engine = PORTABLE if profile.engine == NATIVE else profile.engine
            return engine, self._plan(profile, engine)
        try:
            return NATIVE, self._plan(profile, NATIVE)
        except FitError:
            raise
        except (ModelError, EngineError) as error:
            self._say(f"{NATIVE} cannot train {self._source.name}, so its profiles get the engine {PORTABLE}: {error}")
            self._unfit.add(NATIVE)
        return PORTABLE, self._plan(profile, PORTABLE)

    def _plan(self, profile: Profile, chosen: str) -> Candidate:
        """Choose with the sizes that are known; export what was chosen; until the choice is one whose real size is known."""
        while True:
            golden = golden_length(self._source.input_shape, self._source.classes)
            sizes = {width: _total(e) + golden for (engine, width), e in self._exports.items() if engine == chosen}
            candidate = choose(profile.name, profile.storage_bytes, candidates(self._layouts, sizes), self._known)
            if candidate.width in sizes:
                return candidate
            self._exports[chosen, candidate.width] = self._export(chosen, candidate.width)

    def _export(self, engine: str, width: float) -> ExportedGraphs:
        self._say(f"exporting width {width:g} for {engine}")
        exported = export_graphs(self._source, width, engine, self._batch)
        self._say(f"comparing width {width:g} for {engine} with torch")
        verify_graphs(self._source, width, exported, engine=engine, batch=self._batch)
        return exported

    def _slice(self, layout: Layout) -> Float32:
        return self._parent[nested_index(self._layouts[1.0], layout)]

    def _golden(self, kind: str, candidate: Candidate, exported: ExportedGraphs, weights: bytes) -> bytes:
        """A few inputs, and what the exported graph makes of them with the weights as a device decodes them."""
        key = (kind, candidate.name)
        if key not in self._goldens:
            with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
                paths = {role: Path(directory) / role for role in exported.graphs}
                for role, path in paths.items():
                    path.write_bytes(exported.graphs[role])
                inputs = golden_inputs(self._source.input_shape, self._source.classes)
                outputs = self._opened(kind, candidate, paths, weights).predict(inputs)
            self._goldens[key] = encode_golden(inputs, outputs)
        return self._goldens[key]

    def _opened(self, kind: str, candidate: Candidate, paths: Mapping[str, Path], weights: bytes) -> Engine:
        shape, classes = self._source.input_shape, self._source.classes
        files = VariantFiles(kind, candidate.layout, shape, classes, self._batch, paths, self._source.recipe)
        engine = open_engine(files, threads=1)
        engine.set_vector(decode_weights(weights, candidate.layout))
        return engine

    def _check_on_disk(self, profile: Profile, candidate: Candidate, files: Sequence[FileRef]) -> None:
        """What the planner computed is what the files take, or for weights whose length depends on their values, at most that."""
        found = sum(len(self._blobs.get(ref.sha256)) for ref in files)
        exact = candidate.precision in TRAINABLE
        if (
            found > candidate.file_bytes
            or (exact and found != candidate.file_bytes)
            or candidate.footprint > profile.storage_bytes
        ):
            raise FitError(
                f"variant {candidate.name} for profile {profile.name} is not as large as planned",
                expected=f"{candidate.file_bytes} bytes on disk, {profile.storage_bytes} with working state",
                found=f"{found}",
                remedy="Check the disk; then push again",
            )

    def _accuracy(self, kind: str, candidate: Candidate, files: Sequence[FileRef]) -> float | None:
        if self._holdout is None:
            return None
        key = (kind, candidate.name)
        if key not in self._accuracies:
            self._say(f"measuring {candidate.name} on {len(self._holdout)} examples")
            paths = {ref.role: self._blobs.path(ref.sha256) for ref in files}
            engine = self._opened(kind, candidate, paths, self._blobs.get(files[-1].sha256))
            self._accuracies[key] = engine.evaluate(self._holdout).accuracy
        return self._accuracies[key]


def _total(exported: ExportedGraphs) -> int:
    return sum(map(len, exported.graphs.values()))


def _layouts(source: ModelSource) -> Mapping[float, Layout]:
    """The layout of each width that the model can have; widths that come to the layout of a wider one are left out."""
    parent = layout_of(source.build())
    layouts = {1.0: parent}
    for width in WIDTHS if source.scalable else ():
        layout = layout_of(source.build(width))
        if layout not in layouts.values():
            nested_index(parent, layout)
            layouts[width] = layout
    return layouts
