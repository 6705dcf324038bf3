"""Which of many ways to make a variant is best under a budget, and why. Pure.

Model. An `Offer` has a name, a predicted accuracy and a cost: bytes of storage, bytes of memory and milliseconds of a training
step. A budget bounds some of these. The offers are made without looking at a budget; then

* the *winner* is the most accurate offer that fits; among equally accurate ones it is the first in the given order, so the caller
  lists what it prefers first;
* the *frontier* holds every offer that no other one beats at no more cost;
* the *nearest* better one is the offer above the winner that exceeds the budget by the smallest share: it says what binds.

Laws: the winner fits and lies on the frontier; a larger budget never predicts worse, because whatever fitted still does; equal
input gives equal output. Where accuracies are not known the order of the offers alone decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Resource = Literal["storage", "memory", "step"]
RESOURCES: tuple[Resource, ...] = ("storage", "memory", "step")
UNITS: Mapping[Resource, str] = {"storage": "bytes", "memory": "bytes", "step": "ms"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What an offer takes.

    Attributes:
        storage: bytes on disk at most, with working state.
        memory: bytes of the training process at its peak, estimated.
        step: milliseconds of one training step, estimated.
    """

    storage: float
    memory: float = 0.0
    step: float = 0.0

    def of(self, resource: Resource) -> float:
        """The figure for a resource."""
        return {"storage": self.storage, "memory": self.memory, "step": self.step}[resource]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a profile allows, in the units of `Cost`; None: as much as it takes."""

    storage: float
    memory: float | None = None
    step: float | None = None

    def limit(self, resource: Resource) -> float | None:
        """The bound on a resource."""
        return {"storage": self.storage, "memory": self.memory, "step": self.step}[resource]

    def excess(self, cost: Cost) -> Mapping[Resource, float]:
        """By how much a cost exceeds each bound that it exceeds; empty if it fits."""
        bounds = ((resource, self.limit(resource)) for resource in RESOURCES)
        return {r: cost.of(r) - bound for r, bound in bounds if bound is not None and cost.of(r) > bound}

    def strain(self, cost: Cost) -> float:
        """The largest share by which a cost exceeds a bound; 0 if it fits."""
        bounds = ((resource, self.limit(resource)) for resource in RESOURCES)
        return max([0.0, *(cost.of(r) / max(bound, 1e-9) - 1.0 for r, bound in bounds if bound is not None)])


class Offer(Protocol):
    """One way to make a variant."""

    @property
    def name(self) -> str:
        """Unique among the offers."""
        ...

    @property
    def cost(self) -> Cost:
        """What it takes."""
        ...

    @property
    def accuracy(self) -> float | None:
        """Predicted, in [0, 1]; None if it is not known."""
        ...


T = TypeVar("T", bound=Offer)


@dataclass(frozen=True, slots=True)
class Planned(Generic[T]):
    """The outcome for one budget.

    Attributes:
        winner: what to make; None if nothing fits.
        frontier: what no other offer beats at no more cost of the resources that matter here, the best first.
        nearest: better than the winner and nearest to fitting; None if the winner is the best there is.
        excess: by how much `nearest` exceeds the budget.
        informed: whether accuracies decided; otherwise the order of the offers.
    """

    winner: T | None
    frontier: tuple[T, ...]
    nearest: T | None
    excess: Mapping[Resource, float]
    informed: bool

    @property
    def reason(self) -> str:
        """Why this one, in one sentence."""
        rule = "" if self.informed else "; without measured accuracies the first in order that fits is taken"
        if self.nearest is None:
            return "the best there is, and it fits" + rule
        missing = " and ".join(f"{_amount(value, r)} more {r}" for r, value in self.excess.items())
        told = "" if self.nearest.accuracy is None else f" ({100 * self.nearest.accuracy:.2f} %)"
        return f"{' and '.join(self.excess)} binds: {self.nearest.name}{told} needs {missing}{rule}"


def plan(offers: Sequence[T], budget: Budget) -> Planned[T]:
    """Winner, frontier and reason.

    Args:
        offers: at least one, names distinct, what is preferred at equal accuracy first.
        budget: of the profile.
    """
    informed = all(offer.accuracy is not None for offer in offers)
    ordered = ranked(offers)
    winner = next((offer for offer in ordered if not budget.excess(offer.cost)), None)
    better = ordered if winner is None else ordered[: ordered.index(winner)]
    nearest = min(better, key=lambda offer: budget.strain(offer.cost), default=None)
    matter = tuple(r for r in RESOURCES if r == "storage" or any(r in budget.excess(offer.cost) for offer in offers))
    return Planned(winner, frontier(ordered, matter), nearest, budget.excess(nearest.cost) if nearest else {}, informed)


def ranked(offers: Sequence[T]) -> tuple[T, ...]:
    """The offers, the best first: by accuracy if all are known, else as they stand; the sort is stable."""
    if any(offer.accuracy is None for offer in offers):
        return tuple(offers)
    return tuple(sorted(offers, key=lambda offer: -(offer.accuracy or 0.0)))


def frontier(ordered: Sequence[T], resources: Sequence[Resource] = RESOURCES) -> tuple[T, ...]:
    """The offers, the best first, that cost less of something than every better one."""
    kept: list[T] = []
    for offer in ordered:
        if not any(all(better.cost.of(r) <= offer.cost.of(r) for r in resources) for better in kept):
            kept.append(offer)
    return tuple(kept)


def _amount(value: float, resource: Resource) -> str:
    return f"{value:.3g} ms" if resource == "step" else f"{value:,.0f} bytes"
