"""The choice for a profile, or why there is none: which of its limits, how far the least demanding offer is over it, what to do.

Rule: an error names what would have to change and to what: the profile that is large enough, the tensor, the key of the profile.
It tells apart what a smaller model would help and what it would not: a trainer takes most of a small board's memory before it has
a model.
"""

from collections.abc import Iterable, Mapping, Sequence

from edgefl.compress.budget import Candidate
from edgefl.compress.cost import BASE
from edgefl.compress.planner import Budget, Planned, Resource, plan
from edgefl.errors import FitError
from edgefl.layout import Layout, Tensor

MIB = 1 << 20
WRONG_BY = 4
"""A model's own memory may be so many times what its shapes tell."""
KEYS: Mapping[Resource, str] = {"storage": "storage_kib", "memory": "memory_mb", "step": "step_ms"}
"""The keys of a profile that set these limits."""


def choose(
    profile: str, budget: Budget, offered: Sequence[Candidate], others: Iterable[tuple[str, int]] = ()
) -> tuple[Candidate, Planned[Candidate]]:
    """What to make, and how it was found.

    Args:
        profile: name, for the error.
        budget: of the profile.
        offered: in order of preference, at least one.
        others: name and bytes of storage of other profiles, to suggest one.

    Raises:
        FitError: none fits. The text says by how much, which tensor dominates, and which profile would do.
    """
    planned = plan(offered, budget)
    if planned.winner is None:
        raise _does_not_fit(profile, budget, offered, others)
    return planned.winner, planned


def dominant(layout: Layout) -> Tensor:
    """The tensor with the most parameters."""
    return max(layout.tensors, key=lambda tensor: tensor.size)


def _does_not_fit(profile: str, budget: Budget, offered: Sequence[Candidate], others: Iterable[tuple[str, int]]) -> FitError:
    least = min(offered, key=lambda candidate: candidate.footprint)
    if least.footprint <= budget.storage:
        return _too_demanding(profile, budget, offered)
    tensor = dominant(least.layout)
    share = 100 * tensor.size // least.layout.size
    enough = sorted((size, name) for name, size in others if size >= least.footprint)
    advice = (
        f"Use profile {enough[0][1]} ({enough[0][0]} bytes)"
        if enough
        else "No known profile is large enough: use a smaller model"
    )
    over = least.footprint - int(budget.storage)
    return FitError(
        f"the model does not fit profile {profile} even as {least.name}: it is {over} bytes too large",
        expected=f"at most {budget.storage:.0f} bytes of storage ({KEYS['storage']})",
        found=f"{least.footprint} bytes, of which tensor {tensor.name!r} {tensor.shape} has {share} % of the parameters",
        remedy=f"{advice}, or make {tensor.name!r} smaller",
    )


def _too_demanding(profile: str, budget: Budget, offered: Sequence[Candidate]) -> FitError:
    """It could be stored, but not be trained."""
    storable = [one for one in offered if one.footprint <= budget.storage]
    least = min(storable, key=lambda one: (not (one.demand and one.demand.run), budget.strain(one.cost)))
    limits = {r: budget.limit(r) or 0.0 for r in budget.excess(least.cost)}
    return FitError(
        f"the model cannot {'be trained' if least.trains else 'answer'} on profile {profile} even as {least.name}",
        expected=", ".join(f"{r} at most {_amount(limit, r)} ({KEYS[r]})" for r, limit in limits.items()),
        found=", ".join(_found(least, r) for r in limits),
        remedy="; ".join(_remedy(least, r, limit) for r, limit in limits.items()),
    )


def _found(least: Candidate, resource: Resource) -> str:
    text = f"{resource} {'' if _known(least, resource) else 'about '}{_amount(least.cost.of(resource), resource)}"
    if resource != "memory":
        return text
    more = " or more" if least.demand is not None and least.demand.bound else ""
    return f"{text}{more}, of which its tensors are about {_own(least) / MIB:.3g} MiB"


def _remedy(least: Candidate, resource: Resource, limit: float) -> str:
    """What would let it fit."""
    took, key = least.cost.of(resource), KEYS[resource]
    if resource == "step":
        enough = "at least" if _known(least, resource) else "about"
        return f"Use a smaller --batch, a smaller model, or a {key} of {enough} {took:.3g}"
    more = "more than" if least.demand is not None and least.demand.bound else "at least"
    enough = f"a {key} of {more} {-(-int(took) // MIB)}"
    if took - WRONG_BY * _own(least) > limit:
        return f"No smaller model helps, because the trainer takes the rest without one: use a profile with {enough}"
    smaller = "a smaller --batch, a smaller model," if least.trains else "a smaller model"
    return f"Use {smaller} or a profile with {enough}"


def _known(candidate: Candidate, resource: Resource) -> bool:
    """Whether its figure is of a run; otherwise it is an estimate."""
    return candidate.demand is not None and candidate.demand.proves(resource)


def _own(candidate: Candidate) -> float:
    """Bytes that shapes tell of."""
    return max(candidate.estimate.memory - BASE, 0.0)


def _amount(value: float, resource: Resource) -> str:
    return f"{value:.3g} ms" if resource == "step" else f"{value / MIB:,.4g} MiB"
