"""How a model is trained: the plan that an operator writes and that every round order carries to the devices."""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=30 * 86400.0)]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run of one model. The defaults are a good start for small image models.

    Attributes:
        rounds: how many rounds to run.
        epochs: passes over the local data per round.
        learning_rate: of the local optimiser.
        sparsity: p, the fraction of coordinates that an update carries; smaller is less traffic.
        bits: per sent value, 1 (sign and one magnitude) to 8; fewer is less traffic.
        fraction: of the devices take part in a round, by `hash(device, round) < fraction`.
        cohort: K, the round is aggregated as soon as so many updates are in.
        quorum: at the deadline the round is aggregated with at least so many updates, otherwise it waits on.
        deadline: seconds after the opening of a round.
        staleness: how many rounds late an update may be and still count (discounted by `1/sqrt(1 + late)`).
        server_rate: factor on the mean update; 1 is plain federated averaging.
        seed: of the local shuffling and of stochastic rounding.
        proximal: FedProx's mu, which ties local training to the round's weights; 0 is plain federated averaging. Needs a version
            that was pushed with the proximal term.
    """

    rounds: Count = 20
    epochs: Count = 1
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.1
    sparsity: Share = 0.02
    bits: Annotated[int, msgspec.Meta(ge=1, le=8)] = 4
    fraction: Share = 1.0
    cohort: Count = 2
    quorum: Count = 1
    deadline: Seconds = 600.0
    staleness: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    server_rate: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    proximal: Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)] = 0.0
