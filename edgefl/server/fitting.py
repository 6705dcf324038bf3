"""The best variant that is proved to fit a profile: choose, make, run, learn from the run, choose again.

Model. The planner chooses by sizes and estimates. What it chose is exported, which gives its real size, and then run by the
board's trainer, which gives memory and step time; both go back to the planner, the latter as `edgefl.compress.evidence` of the
others too. The choice stands when what was chosen has been run and still is the best that fits. So a variant that proves too
large is out with its measured figure, and one that was thought too large comes in where the estimates were too high.

Rules: nothing that could be stored is refused by an estimate alone: where estimates leave nothing, what has not been run is, the
least demanding first and another structure before another precision, until something fits. A run that was ended for its memory
proves no fit, however little it had taken by then: what was run so is out for this profile. At most `MOST` runs for a profile;
after that only what has been run can be chosen. A structure that an engine cannot export, open or run is out for that engine; the
portable engine has nobody behind it, so that there such an error is the push's. An engine that has failed with `TRIES` structures
and has managed none is given up.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from edgefl.compress.budget import Candidate, Resting, candidates, choose
from edgefl.compress.evidence import Demand, Evidence, Run
from edgefl.compress.planner import Budget, Cost, Planned, plan
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.profile import PORTABLE, Profile
from edgefl.server.making import Bench
from edgefl.server.rehearsal import MIB, Measured, Rehearsals, threads_of
from edgefl.server.sensing import Offered
from edgefl.wire.files import FileRef

MOST = 8
TRIES = 3


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a profile gets of an engine.

    Attributes:
        candidate: structure, precision and sizes; its demand is measured.
        planned: what else there was, and why this.
        files: all of them but a `serve` graph, in the blob store.
        measured: what the board's trainer took.
        refused: what was run and turned out to be too much for this profile, in that order.
    """

    candidate: Candidate
    planned: Planned[Candidate]
    files: tuple[FileRef, ...]
    measured: Measured
    refused: tuple[Candidate, ...]


class Fitting:
    """Finds what fits, for the profiles of one push, which share what is exported and measured.

    Args:
        bench: makes the files.
        rehearsals: runs them.
        offered: the structures and what is known of their accuracy.
        known: name and bytes of storage of other profiles, to suggest one.
        say: told what is being done, a line at a time.
    """

    def __init__(
        self,
        bench: Bench,
        rehearsals: Rehearsals,
        offered: Offered,
        known: Iterable[tuple[str, int]],
        say: Callable[[str], None],
    ) -> None:
        self._bench = bench
        self._rehearsals = rehearsals
        self._offered = offered
        self._known = tuple(known)
        self._say = say
        self._evidence: dict[tuple[str, int], Evidence] = {}
        self._unable: dict[tuple[str, str], EngineError | ModelError] = {}
        self._resting: dict[str, Resting] = {}

    def lost(self, engine: str) -> bool:
        """Whether there are structures that the engine cannot train."""
        return any(kind == engine for kind, _ in self._unable)

    def rests(self, structure: str, weights: bytes, resting: Resting) -> None:
        """Offer the codebook file of a structure that was retrained, from now on."""
        self._bench.rests(structure, weights)
        self._resting[structure] = resting

    def fitted(self, profile: Profile, engine: str) -> Fitted:
        """The best that an engine can train on boards of a profile.

        Raises:
            FitError: nothing fits; the text says what was run and what it took.
            ModelError, EngineError: the engine cannot train the model.
            StoreError: files cannot be written.
        """
        run: dict[str, Candidate] = {}
        while True:
            self._check_able(engine)
            candidate, planned = self._chosen(profile, engine, run)
            name, structure = candidate.name, candidate.structure.name
            try:
                if not self._bench.exported(engine, structure):
                    self._bench.export(engine, self._offered.cuts[structure])
                    continue
                files = self._bench.made(engine, candidate, self._offered.cuts[structure])
                if name not in run:
                    self._say(f"running {name} as a board does")
                measured = self._rehearsals.run(self._bench.subject(engine, candidate, files), profile)
            except FitError:
                raise
            except (ModelError, EngineError) as error:
                if engine == PORTABLE:
                    raise
                self._say(f"{engine} cannot train {structure}: {error}")
                self._unable[engine, structure] = error
                continue
            if name in run and not measured.ended:
                refused = tuple(one for one in run.values() if budget_of(profile).excess(one.cost))
                return Fitted(candidate, planned, files, measured, refused)
            run[name] = replace(candidate, demand=self._learn(profile, engine, candidate, measured))

    def offers(self, profile: Profile, engine: str) -> tuple[Candidate, ...]:
        """What an engine can train, in order of preference, with what is known of it by now."""
        cuts, recipe = self._offered.cuts, self._bench.source.recipe
        able = [cut.structure for cut in cuts.values() if (engine, cut.structure.name) not in self._unable]
        evidence = self._evidence.get((engine, threads_of(profile)), Evidence())

        def weigh(name: str, estimated: Cost) -> Demand:
            return evidence.demand(name, estimated, slowdown=profile.slowdown or 1.0)

        return candidates(
            able,
            self._bench.graph_bytes(engine, cuts),
            predicted=self._offered.predicted if self._offered.baseline else None,
            batch=self._bench.batch,
            recipe=recipe,
            resting=self._resting,
            weigh=weigh,
        )

    def _chosen(self, profile: Profile, engine: str, run: Mapping[str, Candidate]) -> tuple[Candidate, Planned[Candidate]]:
        offers = tuple(run.get(one.name, one) for one in self.offers(profile, engine))
        if len(run) >= MOST:
            offers = tuple(one for one in offers if _is_shown(one, run)) or offers
        budget = budget_of(profile)
        try:
            return choose(profile.name, budget, offers, self._known)
        except FitError as error:
            storable = tuple(one for one in offers if one.footprint <= budget.storage and not _is_shown(one, run))
            if storable and len(run) < MOST:
                tried = {one.structure.name for one in run.values()}  # which says most of its other precisions already
                least = min(storable, key=lambda one: (one.structure.name in tried, budget.strain(one.cost)))
                return least, plan(offers, budget)
            shown = {one.name: one for one in offers if _is_shown(one, run)} | dict(run)
            if not shown:
                raise
            took = ", ".join(f"{name} took {_took(one)}" for name, one in shown.items())
            raise FitError(error.problem, expected=error.expected, found=f"{error.found}; {took}", remedy=error.remedy) from error

    def _learn(self, profile: Profile, engine: str, candidate: Candidate, measured: Measured) -> Demand:
        """Keep what a run has shown; the demand of what was run."""
        key = (engine, threads_of(profile))
        step = 1000.0 * measured.step_seconds
        run = Run(candidate.name, candidate.estimate, measured.peak_bytes, step, measured.ended)
        self._evidence[key] = self._evidence.get(key, Evidence()).after(run)
        budget, memory = budget_of(profile), measured.peak_bytes
        if measured.ended:
            memory = max(memory, profile.memory_mb * MIB + 1)  # a lower bound, which proves no fit however low it is
        demand = Demand(memory, step * (profile.slowdown or 1.0), measured=not measured.ended)
        ran = replace(candidate, demand=demand)
        if excess := budget.excess(ran.cost):
            self._say(f"{candidate.name} is too much for {profile.name} ({' and '.join(excess)}): {_took(ran)}")
        return demand

    def _check_able(self, engine: str) -> None:
        """Raise what an engine last failed with, if there is no use in trying it on."""
        failures = [error for (kind, _), error in self._unable.items() if kind == engine]
        hopeless = len(failures) >= TRIES and not self._bench.any_exported(engine)
        if failures and (hopeless or len(failures) == len(self._offered.cuts)):
            raise failures[-1]


def budget_of(profile: Profile) -> Budget:
    """What a profile allows; a step may take as long as it does where the profile sets no limit."""
    return Budget(profile.storage_bytes, profile.memory_mb * MIB, profile.step_ms or None)


def _is_shown(one: Candidate, run: Mapping[str, Candidate]) -> bool:
    """Whether a candidate was run: for this profile, or to its end for another one."""
    return one.name in run or (one.demand is not None and one.demand.measured)


def _took(ran: Candidate) -> str:
    cost = ran.cost
    step = f", {cost.step:.3g} ms a step" if cost.step else ""
    more = "" if ran.demand is None or ran.demand.measured else " or more"
    return f"{cost.memory / MIB:.0f} MiB{more}{step}"
