"""What to run next although what is known says that it is too much: how far an estimate is to be believed. Pure.

Model. An offer that was run is *proved*: it fits a budget or it does not, by its measured figures. Of any other there is an
estimate, corrected by what was run (`edgefl.compress.evidence`). Figures of estimates may be wrong by a factor; their order is
what is believed. So what refuses an offer that was not run is never its estimate but a proof about another offer:

* it is *refused* for a resource if something that is estimated to take no more of it was proved to take too much, unless
  something that is estimated to take no less of it was proved to fit;
* a proof that is near the limit refuses only what it puts beyond the limit by more than `MARGIN`, because precisions of one
  structure have one estimate and differ by as much;
* a run that was ended for its memory proves that it takes too much of that, and nothing about its step, which nobody measured;
* what is not refused and could be stored is worth one run if it is predicted to be better than everything that is proved to fit.

Of those the least demanding comes first, and another structure before another precision. If it fits, what fits has become
better; if not, it refuses all the others that are estimated to take as much. So where the order of the estimates is right one run
more than necessary is made, and where nothing fits, the smallest offer is the last to be run.

Law: an offer that is better than the choice and was not run is estimated to take at least as much as one that proved too much.
"""

from collections.abc import Iterable, Sequence

from edgefl.compress.budget import Candidate
from edgefl.compress.planner import Budget, Cost, Resource, ranked

RUN: tuple[Resource, ...] = ("memory", "step")
"""What only a run proves; storage is computed."""
MARGIN = 0.05
"""Part of a limit by which offers of equal estimates may differ."""
TINY = 1e-9


def is_proved(one: Candidate, budget: Budget) -> bool:
    """Whether an offer was run and what it took says whether it fits; one that was ended below the limit says nothing."""
    return one.demand is not None and (one.demand.measured or bool(proved_excess(one, budget)))


def proved_excess(one: Candidate, budget: Budget) -> tuple[Resource, ...]:
    """What an offer takes too much of, as its own run has shown; empty if it was not run."""
    excess, demand = budget.excess(one.cost), one.demand
    return tuple(r for r in RUN if r in excess and demand is not None and demand.proves(r))


def not_refused(some: Iterable[Candidate], offers: Iterable[Candidate], budget: Budget) -> list[Candidate]:
    """Those of some that could be stored and that no proof refuses.

    Args:
        some: of which there is no proof, whether or not they are on offer.
        offers: among which there may be proofs.
        budget: of the profile.
    """
    proofs = [one for one in offers if is_proved(one, budget)]
    storable = (one for one in some if one.footprint <= budget.storage)
    return [one for one in storable if not any(_refused(r, one.estimate, proofs, budget) for r in RUN)]


def worth_a_run(offers: Sequence[Candidate], budget: Budget, winner: Candidate | None) -> Candidate | None:
    """What is to be run before a choice stands; None if nothing is.

    Args:
        offers: in order of preference, names distinct.
        budget: of the profile.
        winner: the best that is proved to fit, one of the offers; None if nothing is.
    """
    ordered = ranked(offers)
    better = ordered if winner is None else ordered[: ordered.index(winner)]
    proved = [one for one in offers if is_proved(one, budget)]
    names, tried = {one.name for one in proved}, {one.structure.name for one in proved}
    open_ones = not_refused((one for one in better if one.name not in names), proved, budget)
    return min(open_ones, key=lambda one: (one.structure.name in tried, budget.strain(one.cost)), default=None)


def _refused(resource: Resource, estimated: Cost, proofs: Iterable[Candidate], budget: Budget) -> bool:
    """Whether a proof says that an offer takes too much of a resource, and none says the contrary."""
    limit, own = budget.limit(resource), max(estimated.of(resource), TINY)
    if limit is None:
        return False
    refused = False
    for proof in proofs:
        bound = proof.demand is not None and proof.demand.bound
        if bound and resource != "memory":
            continue
        other, took = max(proof.estimate.of(resource), TINY), proof.cost.of(resource)
        if took <= limit and own <= other:
            return False
        clear = bound or took * own > (1.0 + MARGIN) * limit * other
        refused = refused or (took > limit and own >= other and clear)
    return refused
