"""Making variants: planned to fit a profile, exported, compared with torch, written, measured.

Model. The parent is the whole model. For a profile the planner (`edgefl.compress.planner`) picks a structure and a precision;
graphs are exported, compared with torch and measured; if the real files are too large the planner is asked again with what is
known now. Profiles that come to the same structure, precision and engine share everything but the manifest.

Rule: what is measured is what is sent: bytes of the files on disk, memory and steps of the board's trainer with them, accuracy of
the decoded weights through the exported graph, and the golden outputs, which every device compares its own with before it makes
the version its active one.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgefl.codec.golden import encode_golden, golden_inputs, golden_length
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.compress.budget import Candidate, candidates, choose
from edgefl.compress.planner import Budget, Planned
from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, export_graphs
from edgefl.export.models import ModelSource
from edgefl.export.verify import random_examples, verify_graphs
from edgefl.layout import Float32
from edgefl.profile import NATIVE, PORTABLE, Profile
from edgefl.server.cuts import Cut, sizes_of_graphs
from edgefl.server.quantising import DROP, Int8, Quantiser
from edgefl.server.rehearsal import Rehearsals, Subject, rows_for
from edgefl.server.sensing import offer
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import SERVE, FileRef, Fit


@dataclass(frozen=True, slots=True)
class Made:
    """A variant whose files are in the blob store.

    Attributes:
        profile: for which boards.
        engine: that trains it: the profile's, or `portable` where the profile's cannot train this model.
        candidate: structure, precision, layout and sizes.
        cut: its place in the parent.
        planned: what else there was, and why this.
        files: all of them, `weights` last.
        accuracy: in [0, 1] of the decoded weights on the hold-out examples; None without them.
        fit: what the board's trainer took for it.
        int8: what its `serve` graph is worth; None if it has none.
    """

    profile: Profile
    engine: str
    candidate: Candidate
    cut: Cut
    planned: Planned[Candidate]
    files: tuple[FileRef, ...]
    accuracy: float | None
    fit: Fit
    int8: Int8 | None

    @property
    def file_bytes(self) -> int:
        """Length of all files together."""
        return sum(ref.length for ref in self.files)


class Workshop:
    """Makes variants of one model and remembers what several profiles share.

    Args:
        source: the model.
        parent: its weights at full width, float32, shape `(layout.size,)`.
        blobs: receives the files.
        batch: rows of a training step.
        holdout: examples to measure accuracy on, or None.
        calibrate: examples to calibrate int8 graphs with, or None for no such graphs; needs a hold-out.
        drop: accuracy that an int8 graph may lose.
        known: profiles to suggest when one is too small.
        on_progress: told what is being done, a line at a time.
        freezable: whether first layers may be frozen where that lets a more accurate variant fit.

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
        calibrate: Examples | None = None,
        drop: float = DROP,
        known: Iterable[Profile],
        on_progress: Callable[[str], None],
        freezable: bool = False,
    ) -> None:
        self._source = source
        self._parent = parent
        self._blobs = blobs
        self._batch = batch
        self._say = on_progress
        self._holdout = holdout.shaped(source.input_shape, source.classes, source.recipe.loss) if holdout else None
        self._quantiser = None
        if calibrate is not None and self._holdout is not None:
            typical = calibrate.shaped(source.input_shape, source.classes, source.recipe.loss)
            self._quantiser = Quantiser(typical, self._holdout, source.classes, drop=drop, on_progress=on_progress)
        self._offered = offer(source, parent, self._holdout, on_progress, freezable=freezable)
        self._known = [(profile.name, profile.storage_bytes) for profile in known if profile.engine != "none"]
        self._exports: dict[tuple[str, str], ExportedGraphs] = {}
        self._accuracies: dict[tuple[str, str], float | None] = {}
        self._goldens: dict[tuple[str, str], bytes] = {}
        self._unfit: set[str] = set()
        self._rehearsals = Rehearsals(blobs)

    @property
    def basis(self) -> str:
        """What the planner's choices rest on, in words."""
        return self._offered.basis

    def measured(self, engine: str) -> Mapping[str, float]:
        """Accuracies of the variants that were made for an engine so far, by name."""
        return {name: found for (kind, name), found in self._accuracies.items() if kind == engine and found is not None}

    def make(self, profile: Profile) -> Made:
        """The variant for a profile, in the blob store. Raises FitError, ModelError, EngineError, StoreError."""
        engine, (candidate, planned) = self._engine_and_plan(profile)
        cut = self._offered.cuts[candidate.structure.name]
        exported = self._exports[engine, candidate.structure.name]
        weights = encode_weights(cut.slice(self._parent), candidate.layout, candidate.precision)
        golden = self._golden(engine, candidate, exported, weights)
        candidate, served, int8 = self._served(profile, engine, candidate, exported, weights)
        contents = {**exported.graphs, **served, "golden": golden, "weights": weights}
        files = tuple(file_ref(role, data) for role, data in contents.items())
        for data in contents.values():
            self._blobs.put(data)
        self._check_on_disk(profile, candidate, files)
        fit = self._rehearsals.prove(self._subject(engine, candidate, files), profile)
        return Made(profile, engine, candidate, cut, planned, files, self._accuracy(engine, candidate, files), fit, int8)

    def _served(
        self, profile: Profile, engine: str, candidate: Candidate, exported: ExportedGraphs, weights: bytes
    ) -> tuple[Candidate, Mapping[str, bytes], Int8 | None]:
        """The candidate with a `serve` graph among its graphs, and that graph by role, if it is worth it."""
        if self._quantiser is None:
            return candidate, {}, None
        if len(candidate.layout.personal()):
            self._say(f"no int8 graph of {candidate.name}: it would predict without the tensors that each device has for itself")
            return candidate, {}, None
        vector, room = decode_weights(weights, candidate.layout), profile.storage_bytes - candidate.footprint
        kept = self._quantiser.graph(candidate.name, engine, exported.graphs["infer"], candidate.layout, vector, room)
        if kept is None:
            return candidate, {}, None
        data, int8 = kept
        return replace(candidate, graph_bytes=candidate.graph_bytes + len(data)), {SERVE: data}, int8

    def _subject(self, engine: str, candidate: Candidate, files: Sequence[FileRef]) -> Subject:
        self._say(f"running {candidate.name} as a board does")
        source, batch = self._source, self._batch
        examples = random_examples(source, rows_for(batch), seed=0)
        shape, classes, recipe = source.input_shape, source.classes, source.recipe
        return Subject(candidate.name, engine, candidate.layout, shape, classes, batch, recipe, files, examples)

    def _engine_and_plan(self, profile: Profile) -> tuple[str, tuple[Candidate, Planned[Candidate]]]:
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

    def _plan(self, profile: Profile, engine: str) -> tuple[Candidate, Planned[Candidate]]:
        """Choose with the sizes that are known; export what was chosen; until the choice is one whose real size is known."""
        cuts, source = self._offered.cuts, self._source
        golden = golden_length(source.input_shape, source.classes)
        while True:
            sizes = {name: _total(found) + golden for (kind, name), found in self._exports.items() if kind == engine}
            offered = candidates(
                (cut.structure for cut in cuts.values()),
                sizes_of_graphs(cuts, sizes),
                predicted=self._offered.predicted if self._offered.baseline else None,
                batch=self._batch,
                recipe=source.recipe,
            )
            candidate, planned = choose(profile.name, budget_of(profile), offered, self._known)
            if candidate.structure.name in sizes:
                return candidate, planned
            self._exports[engine, candidate.structure.name] = self._export(engine, cuts[candidate.structure.name])

    def _export(self, engine: str, cut: Cut) -> ExportedGraphs:
        structure = cut.structure
        self._say(f"exporting {structure.name} for {engine}")
        exported = export_graphs(cut.source, structure.width, engine, self._batch)
        if exported.layout != structure.layout:
            raise ModelError(f"the factory of model {self._source.name!r} builds another model every time")
        self._say(f"comparing {structure.name} for {engine} with torch")
        verify_graphs(cut.source, structure.width, exported, engine=engine, batch=self._batch)
        return exported

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
        """The files take what the planner computed, or at most that where the length of weights depends on their values."""
        found = sum(len(self._blobs.get(ref.sha256)) for ref in files)
        if found > candidate.file_bytes or candidate.footprint > profile.storage_bytes:
            raise FitError(
                f"variant {candidate.name} for profile {profile.name} is larger than planned",
                expected=f"at most {candidate.file_bytes} bytes on disk, {profile.storage_bytes} with working state",
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


def budget_of(profile: Profile) -> Budget:
    """What a profile allows; a step may take as long as it does."""
    return Budget(profile.storage_bytes, profile.memory_mb << 20)
