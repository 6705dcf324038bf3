"""Making variants: planned to fit a profile, exported, compared with torch, run as a board does, written, measured.

Model. The parent is the whole model. `edgefl.server.fitting` finds the best structure and precision that is proved to fit a
profile, with files from `edgefl.server.making`; here the engine is chosen and the variant completed. Profiles that come to the
same structure, precision and engine share everything but the manifest. A native profile gets the portable engine where its own
cannot train any structure that fits.

Rule: what is measured is what is sent: bytes of the files on disk, memory and steps of the board's trainer with them, accuracy of
the decoded weights through the exported graph, and the golden outputs, which every device compares its own with before it makes
the version its active one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgefl.codec.weights import decode_weights
from edgefl.compress.budget import Candidate
from edgefl.compress.planner import Planned
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.examples import Examples
from edgefl.export.models import ModelSource
from edgefl.layout import Float32
from edgefl.profile import NATIVE, PORTABLE, Profile
from edgefl.server.cuts import Cut
from edgefl.server.fitting import Fitted, Fitting, budget_of
from edgefl.server.making import Bench
from edgefl.server.quantising import DROP, Int8, Quantiser
from edgefl.server.rehearsal import Rehearsals, fit_of
from edgefl.server.retraining import MOST as RETRAINED
from edgefl.server.retraining import Retrainer, Retraining
from edgefl.server.sensing import Offered, offer
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import FileRef
from edgefl.wire.releases import SERVE, Fit


@dataclass(frozen=True, slots=True)
class Made:
    """A variant whose files are in the blob store.

    Attributes:
        profile: for which boards.
        engine: that runs it: the profile's, or `portable` where the profile's cannot train this model.
        candidate: structure, precision, layout and sizes.
        cut: its place in the parent.
        planned: what else there was, and why this.
        files: all of them, `weights` last.
        accuracy: in [0, 1] of the decoded weights on the hold-out examples; None without them.
        fit: what the board's trainer took for it.
        int8: what its `serve` graph is worth; None if it has none.
        refused: variants that were run and are too much for this profile, with what they took.
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
    refused: tuple[Candidate, ...] = ()

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
        retraining: how structures that only just do not fit may be retrained, or None; needs a hold-out.
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
        retraining: Retraining | None = None,
    ) -> None:
        self._source = source
        self._blobs = blobs
        self._say = on_progress
        kept = holdout.shaped(source.input_shape, source.classes, source.recipe.loss) if holdout else None
        self._quantiser = None
        if calibrate is not None and kept is not None:
            typical = calibrate.shaped(source.input_shape, source.classes, source.recipe.loss)
            self._quantiser = Quantiser(typical, kept, source.classes, drop=drop, on_progress=on_progress)
        self._offered = offer(source, parent, kept, on_progress, freezable=freezable)
        self._retrainer = Retrainer(source, parent, self._offered, retraining, on_progress) if retraining else None
        self._bench = Bench(source, parent, blobs, batch=batch, holdout=kept, say=on_progress)
        others = [profile for profile in known if profile.engine != "none"]
        self._fitting = Fitting(self._bench, Rehearsals(blobs), self._offered, others, on_progress)

    @property
    def basis(self) -> str:
        """What the planner's choices rest on, in words."""
        return self._offered.basis

    @property
    def offered(self) -> Offered:
        """The structures of the model, and what is known of their accuracy."""
        return self._offered

    def measured(self, engine: str) -> Mapping[str, float]:
        """Accuracies of the variants that were made for an engine so far, by name."""
        return self._bench.measured(engine)

    def make(self, profile: Profile) -> Made:
        """The variant for a profile, in the blob store. Raises FitError, ModelError, EngineError, StoreError."""
        if profile.engine == NATIVE:
            try:
                return self._made(profile, NATIVE)
            except FitError:
                if not self._fitting.lost(NATIVE):
                    raise
                why = "what it can train does not fit"
            except (ModelError, EngineError) as error:
                why = str(error)
            self._say(f"{profile.name} gets the engine {PORTABLE} in place of {NATIVE}: {why}")
            return self._made(profile, PORTABLE)
        return self._made(profile, profile.engine)

    def _made(self, profile: Profile, engine: str) -> Made:
        """What an engine can do best on the profile's boards."""
        fitted = self._best(profile, engine)
        cut = self._offered.cuts[fitted.candidate.structure.name]
        candidate, files, int8 = self._served(profile, engine, fitted)
        self._check_on_disk(profile, candidate, files)
        return Made(
            profile=profile,
            engine=engine,
            candidate=candidate,
            cut=cut,
            planned=fitted.planned,
            files=files,
            accuracy=self._bench.accuracy(engine, candidate, files),
            fit=fit_of(fitted.measured, profile),
            int8=int8,
            refused=fitted.refused,
        )

    def _best(self, profile: Profile, engine: str) -> Fitted:
        """What fits best, after retraining what may fit better."""
        if self._retrainer is None:
            return self._fitting.fitted(profile, engine)
        try:
            best = self._fitting.fitted(profile, engine, spare=RETRAINED)
        except FitError:
            best = None
        for _ in range(RETRAINED):
            offers = self._fitting.offers(profile, engine)
            wanted = self._retrainer.wanted(offers, best.candidate if best else None, budget_of(profile))
            if wanted and (found := self._retrainer.retrained(wanted[0])):
                self._fitting.rests(wanted[0].structure.name, *found)
        return self._fitting.fitted(profile, engine)

    def _served(self, profile: Profile, engine: str, fitted: Fitted) -> tuple[Candidate, tuple[FileRef, ...], Int8 | None]:
        """Candidate and files with a `serve` graph among them if it is worth it."""
        candidate, files = fitted.candidate, fitted.files
        if self._quantiser is None:
            return candidate, files, None
        if profile.trains and len(candidate.layout.personal()):
            self._say(f"no int8 graph of {candidate.name}: it would predict without the tensors that each device has for itself")
            return candidate, files, None
        vector = decode_weights(self._blobs.get(files[-1].sha256), candidate.layout)
        infer, room = self._bench.infer(engine, candidate.structure.name), profile.storage_bytes - candidate.footprint
        kept = self._quantiser.graph(candidate.name, engine, infer, candidate.layout, vector, room)
        if kept is None:
            return candidate, files, None
        data, int8 = kept
        larger = replace(candidate, graph_bytes=candidate.graph_bytes + len(data))
        return larger, (*files[:-1], self._bench.stored(SERVE, data), files[-1]), int8

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
