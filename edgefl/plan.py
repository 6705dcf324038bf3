"""How a model is trained: the plan that an operator writes and that every round order carries to the devices."""

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Rate = Literal["fixed", "loss", "curvature"]
Sampling = Literal["uniform", "loss"]
AggregatorName = Literal["mean", "trimmed-mean", "multi-krum", "root-set"]
ServerOptimizer = Literal["sgd", "momentum", "adam", "yogi"]
Scope = Literal["layer", "global", "lamp"]
Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=30 * 86400.0)]


class FleetPruning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Small weights are removed while the fleet trains, a few at a time and for good (FedLTN, see `edgefl.compress.magnitude`).

    Attributes:
        target: part of the prunable weights that is gone in the end, in (0, 1).
        share: of what is left then, goes in each pruning.
        first: round of the training after which is pruned for the first time, before the last; those up to it are pre-training.
        every: rounds from one pruning to the next.
        scope: what small means: within each `layer`, among all (`global`), or among all by `lamp` scores.
        below: nothing is pruned after a round whose mean training loss is above this; 0 does not look.
    """

    target: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.9
    share: Share = 0.3
    first: Count = 5
    every: Count = 1
    scope: Scope = "lamp"
    below: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0


class JumpStart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The first round of a training is a race for the best weights to begin with (FedLTN, see `edgefl.jumpstart`).

    Attributes:
        devices: the first so many answers are waited for; no more than can take part.
        epochs: passes over the local data in this round.
    """

    devices: Count = 3
    epochs: Count = 20


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
        by_layer: whether every tensor sends the fraction `sparsity` of its own coordinates, instead of the whole vector.
        sampled: whether the threshold of what is sent is estimated from a sample (DGC); cheaper for large vectors, not exact.
        rotated: whether values are rotated at random before quantisation (DRIVE, EDEN); needs sparsity 1.
        context: whether positions are coded with what both ends know of the model's history; fewer bytes for some memory.
        price: how strongly coordinates that cost many bits are avoided (rate-distortion selection); 0 chooses by magnitude alone.
        correction: factor of momentum correction (DGC) on the device; 0 is none.
        warmup: rounds over which the sparsity falls from 1/4 to its value, by equal factors (DGC).
        decay: factor on the learning rate from round to round.
        rate: how a device adapts the learning rate: `fixed`, by its `loss`, or by the `curvature` of its loss.
        sampling: who takes part: `uniform`, or `loss`: devices with a larger loss more often.
        aggregator: what is made of the updates: `mean`, `trimmed-mean`, `multi-krum` or `root-set`.
        attackers: the fraction of hostile devices that `trimmed-mean` and `multi-krum` are to stand, below a half.
        clip: updates longer than so many times the median length are shortened to that; 0 does not look.
        exclude: a device whose score falls to this is excluded until an operator reinstates it; 0 excludes nobody.
        optimizer: of the server, that takes the aggregate as its gradient: `sgd` with `server_rate` 1 is federated averaging;
            `momentum` (FedAvgM), `adam`, `yogi`.
        downlink_sparsity: fraction of the coordinates that change from one round's weights to the next; with 1 all may.
        jump_start: what the first round is instead, with the aggregator `mean` alone; None for a round as any other.
        pruning: of the model during the training; None leaves it as it is.
        ramp: rounds over which exits begin to learn of each other; 0 lets them at once. Needs a version with the loss
            `self-distillation` that was pushed with a weight for it.
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
    by_layer: bool = False
    sampled: bool = False
    rotated: bool = False
    context: bool = True
    price: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.0
    correction: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.0
    warmup: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    decay: Share = 1.0
    rate: Rate = "fixed"
    sampling: Sampling = "uniform"
    aggregator: AggregatorName = "mean"
    attackers: Annotated[float, msgspec.Meta(ge=0.0, lt=0.5)] = 0.2
    clip: Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)] = 0.0
    exclude: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    optimizer: ServerOptimizer = "sgd"
    downlink_sparsity: Share = 1.0
    jump_start: JumpStart | None = None
    pruning: FleetPruning | None = None
    ramp: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
