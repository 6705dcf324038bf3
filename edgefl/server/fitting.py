"""The best variant that is proved to fit a profile: choose, make, run, learn from the run, choose again.

Model. The planner chooses by sizes and estimates. What it chose is exported, which gives its real size, and then run by the
board's trainer, which gives memory and step time; both go back to the planner, the latter as `edgefl.compress.evidence` of the
others too. The choice stands when what was chosen has been run and still is the best that fits. So a variant that proves too
large is out with its measured figure, and one that was thought too large comes in where the estimates were too high.

What was chosen and is proved to fit gives way to whatever is predicted to be better and might fit: that is run first. When it
might and when it is refused is the rule of `edgefl.compress.search`: an estimate alone refuses nothing, a proof about something
that is estimated to take no more does.

Rules: a run that was ended for its memory proves no fit, however little it had taken by then: it is noted as taking more than the
profile allows. At most `MOST` runs for a profile and an engine, however often it is asked for; after that only what is proved can
be chosen. What is proved already, for whatever profile, is not run again and is no run of this one. A structure that an engine
cannot export, open or run is out for that engine; behind the native engine stands the portable one, and behind the others nobody,
so that there such an error is the push's. An engine that has failed with `TRIES` structures and has managed none is given up.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edgefl.compress.budget import Candidate, Resting, candidates
from edgefl.compress.choice import choose
from edgefl.compress.evidence import Demand, Evidence, Run
from edgefl.compress.planner import Budget, Cost, Planned, plan
from edgefl.compress.search import is_proved, proved_excess, worth_a_run
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.profile import NATIVE, Profile, trains
from edgefl.server.cuts import Cut
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
        refused: what was run, for this profile or another one, and is too much of memory or step for this one, in that order.
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
        known: other profiles, to suggest one.
        say: told what is being done, a line at a time.
    """

    def __init__(
        self,
        bench: Bench,
        rehearsals: Rehearsals,
        offered: Offered,
        known: Iterable[Profile],
        say: Callable[[str], None],
    ) -> None:
        self._bench = bench
        self._rehearsals = rehearsals
        self._offered = offered
        self._known = tuple(known)
        self._say = say
        self._evidence: dict[tuple[str, int], Evidence] = {}
        self._runs: Counter[tuple[str, str]] = Counter()
        self._unable: dict[tuple[str, str], EngineError | ModelError] = {}
        self._resting: dict[tuple[str, str], Resting] = {}

    def lost(self, engine: str) -> bool:
        """Whether there are structures that the engine cannot train."""
        return any(kind == engine for kind, _ in self._unable)

    def rests(self, structure: str, weights: bytes, resting: Resting) -> None:
        """Offer the weights file of a structure that was retrained, from now on."""
        self._bench.rests(structure, resting.form, weights)
        self._resting[structure, resting.form.name] = resting

    def fitted(self, profile: Profile, engine: str, *, spare: int = 0) -> Fitted:
        """The best that an engine can run on boards of a profile.

        Args:
            profile: whose boards.
            engine: that trains it, or answers with it.
            spare: how many of the `MOST` runs to leave to what is offered later.

        Raises:
            FitError: nothing fits; the text says what was run and what it took.
            ModelError, EngineError: the engine cannot run the model.
            StoreError: files cannot be written.
        """
        while True:
            self._check_able(engine)
            candidate, planned = self._chosen(profile, engine, MOST - spare)
            structure, proved = candidate.structure.name, is_proved(candidate, budget_of(profile))
            try:
                if not self._bench.exported(engine, structure):
                    self._bench.export(engine, self._offered.cuts[structure])
                    continue
                files = self._bench.made(engine, candidate, self._offered.cuts[structure])
                if not proved:
                    self._say(f"running {candidate.name} as a board does")
                measured = self._rehearsals.run(self._bench.subject(engine, candidate, files), profile)
            except FitError:
                raise
            except (ModelError, EngineError) as error:
                if engine != NATIVE:
                    raise
                self._say(f"{engine} cannot train {structure}: {error}")
                self._unable[engine, structure] = error
                continue
            if proved:
                return Fitted(candidate, planned, files, measured, self._refused(profile, engine))
            self._learn(profile, engine, candidate, measured)

    def offers(self, profile: Profile, engine: str) -> tuple[Candidate, ...]:
        """What an engine can run, in order of preference, with what is known of it by now."""
        cuts, recipe = self._offered.cuts, self._bench.source.recipe
        able = [cut.structure for cut in cuts.values() if self._able(engine, cut)]
        evidence = self._known_by(profile, engine)

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
            trains=trains(engine),
        )

    def _able(self, engine: str, cut: Cut) -> bool:
        """Whether an engine may have a structure. What is frozen to save training answers no better than what is not."""
        frozen = not trains(engine) and cut.source.freeze != self._bench.source.freeze
        return not frozen and (engine, cut.structure.name) not in self._unable

    def _refused(self, profile: Profile, engine: str) -> tuple[Candidate, ...]:
        """What runs have shown to be too much for a profile, in their order."""
        offers = {one.name: one for one in self.offers(profile, engine)}
        ran = [offers[run.name] for run in self._known_by(profile, engine).runs if run.name in offers]
        return tuple(one for one in ran if proved_excess(one, budget_of(profile)))

    def _known_by(self, profile: Profile, engine: str) -> Evidence:
        """What runs have shown that count for a profile."""
        return self._evidence.get((engine, threads_of(profile)), Evidence())

    def _chosen(self, profile: Profile, engine: str, most: int) -> tuple[Candidate, Planned[Candidate]]:
        """What to make next: to run it, or because it stands."""
        budget, offers = budget_of(profile), self.offers(profile, engine)
        proved = tuple(one for one in offers if is_proved(one, budget))
        spent = self._runs[profile.name, engine] >= most
        if spent:
            offers = proved or offers
        try:
            others = [(one.name, one.storage_bytes) for one in self._known if one.trains == profile.trains]
            candidate, planned = choose(profile.name, budget, offers, others)
        except FitError as error:
            if not spent and (open_one := worth_a_run(offers, budget, None)):
                return open_one, plan(offers, budget)
            if not proved:
                raise
            took = ", ".join(f"{one.name} took {_took(one)}" for one in proved)
            raise FitError(error.problem, expected=error.expected, found=f"{error.found}; {took}", remedy=error.remedy) from error
        if not spent and candidate in proved and (open_one := worth_a_run(offers, budget, candidate)):
            return open_one, planned
        return candidate, planned

    def _learn(self, profile: Profile, engine: str, candidate: Candidate, measured: Measured) -> None:
        """Keep what a run has shown."""
        self._runs[profile.name, engine] += 1
        memory = measured.peak_bytes
        if measured.ended:
            memory = max(memory, profile.memory_mb * MIB + 1)  # a lower bound, which proves no fit however low it is
        run = Run(candidate.name, candidate.estimate, memory, 1000.0 * measured.step_seconds, measured.ended)
        evidence = self._evidence[engine, threads_of(profile)] = self._known_by(profile, engine).after(run)
        ran = replace(candidate, demand=evidence.demand(run.name, run.estimated, slowdown=profile.slowdown or 1.0))
        if excess := proved_excess(ran, budget_of(profile)):
            self._say(f"{candidate.name} is too much for {profile.name} ({' and '.join(excess)}): {_took(ran)}")

    def _check_able(self, engine: str) -> None:
        """Raise what an engine last failed with, if there is no use in trying it on."""
        failures = [error for (kind, _), error in self._unable.items() if kind == engine]
        hopeless = len(failures) >= TRIES and not self._bench.any_exported(engine)
        if failures and (hopeless or len(failures) == len(self._offered.cuts)):
            raise failures[-1]


def budget_of(profile: Profile) -> Budget:
    """What a profile allows; a step may take as long as it does where the profile sets no limit."""
    return Budget(profile.storage_bytes, profile.memory_mb * MIB, profile.step_ms or None)


def _took(ran: Candidate) -> str:
    cost = ran.cost
    if ran.demand is None or not ran.demand.measured:
        return f"{cost.memory / MIB:.0f} MiB or more"
    return f"{cost.memory / MIB:.0f} MiB" + (f", {cost.step:.3g} ms a step" if cost.step else "")
