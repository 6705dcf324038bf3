"""What is simulated: one strict value that a TOML file or a program writes.

Rule: an experiment and the version of the package say everything about its result; nothing else does.
"""

import os
from typing import Annotated, Literal

import msgspec

from edgefl.codec.weights import Precision
from edgefl.errors import ConfigError
from edgefl.plan import Count, Plan, Share
from edgefl.recipe import Loss, Optimizer, Recipe

DATA_VARIABLE = "EDGEFL_DATA"
"""Environment variable that names the directory of data sets; a source may say `$EDGEFL_DATA`."""

Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
Natural0 = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Iid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="iid", tag_field="kind"):
    """Every device gets a random sample of the whole."""


class Dirichlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dirichlet", tag_field="kind", kw_only=True):
    """Each class is dealt in proportions from a Dirichlet distribution; a small `alpha` gives devices with few classes."""

    alpha: Positive = 0.5


class Shards(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="shards", tag_field="kind", kw_only=True):
    """The examples, sorted by label, are cut into equal shards, and every device gets `each` of them (McMahan et al.)."""

    each: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2


class Natural(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="natural", tag_field="kind"):
    """One device for each client that the data itself names."""


Split = Iid | Dirichlet | Shards | Natural


class Attack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hostile devices; see `edgefl.simulate.attacks`.

    Attributes:
        kind: what they do.
        fraction: of all devices, drawn at random.
        strength: factor on the reversed update (`sign-flip`), on the noise's length in terms of an honest update
            (`gaussian`), on the standard deviations (`alie`; 0 computes them); without meaning for `label-flip`.
    """

    kind: Literal["sign-flip", "gaussian", "alie", "label-flip"]
    fraction: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.2
    strength: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 1.0


class Speeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long devices take, in simulated seconds.

    Attributes:
        distribution: of the factor by which a device is slower than the fastest kind: `equal`; `lognormal`, whose logarithm
            has the standard deviation `spread`; `pareto`, with the tail index `1 / spread`.
        spread: of the distribution; larger is more unequal.
        seconds_per_example: of training, for a device of factor 1.
        uplink, downlink: bytes per second; 0 takes no time.
    """

    distribution: Literal["equal", "lognormal", "pareto"] = "lognormal"
    spread: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 1.0
    seconds_per_example: Positive = 0.001
    uplink: Annotated[float, msgspec.Meta(ge=0.0, le=1e12)] = 0.0
    downlink: Annotated[float, msgspec.Meta(ge=0.0, le=1e12)] = 0.0


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Devices that can hold the same structure.

    Attributes:
        model, width: what they train.
        exits: how many of its first exits they hold; 0 is all, or a model that has none.
        share: of all devices, in proportion to the shares of the other groups.
    """

    model: Name = "mnist-2nn"
    width: Share = 1.0
    exits: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    share: Positive = 1.0

    @property
    def name(self) -> str:
        """The structure's name, for example `w0.5` or `d2w0.5`."""
        return (f"d{self.exits}" if self.exits else "") + f"w{self.width:g}"


class Ensemble(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the server makes of several families: one model of all their outputs, and lessons for each of them.

    Attributes:
        labelled: examples that it keeps back from the data to weigh the families on; 0 leaves them alike.
        unlabelled: examples that it keeps back beside these, without looking at their labels, for the families' lessons.
        every: rounds from one distillation to the next; 0 is never.
        epochs: passes over all kept examples of one distillation.
        learning_rate: of the optimiser in a distillation.
    """

    labelled: Natural0 = 0
    unlabelled: Natural0 = 0
    every: Natural0 = 0
    epochs: Count = 1
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.05


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One simulated training.

    Attributes:
        name: for plots and results.
        about: a sentence for the list of presets.
        model: built-in name or `package.module:factory`.
        width: of the model, in (0, 1].
        groups: what parts of the fleet hold instead of `model` and `width`. Groups of one model are views of one parent, which
            one of them holds whole; models are families, each averaged by itself. A row's accuracy is that of the first group.
        loss, optimizer: of the devices' training step.
        data, holdout: sources of the devices' examples, and of those that the server evaluates on.
        split: how the examples come to the devices.
        devices: how many; 0 with the split `natural`: as many as there are clients.
        examples: of each device; 0 deals out all that there are.
        batch: rows of a training step.
        precision: of the weight files that devices fetch.
        personal: patterns of the names of tensors that stay on each device, as in `edgefl push --personal`.
        tested: share of each device's examples that it does not train on, to test what is its own in the end.
        plan: how the model is trained; the same as of a live training.
        selection: `exact` lets exactly the plan's fraction take part; `lottery` draws every device's lot as in a live fleet.
        mode: `synchronous` waits in every round for all that take part; `buffered` aggregates whenever `plan.cohort` updates are
            in, as a live server does, and discounts what comes late.
        active: with `buffered`, how many devices train at any time; 0 leaves it to the plan's fraction.
        speeds: how long devices take; without it nothing takes time.
        attack: hostile devices; none by default.
        root: examples that the server keeps back from the data for the aggregator `root-set`.
        ensemble: what the server makes of several families; nothing by default.
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        target: accuracy at which the simulation stops; 0 runs all rounds.
        seed: of everything random: initial weights, split, selection, attackers, speeds, and with `plan.seed` local training.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] = "experiment"
    about: str = ""
    model: str = "mnist-2nn"
    width: Share = 1.0
    groups: Annotated[tuple[Group, ...], msgspec.Meta(max_length=64)] = ()
    loss: Loss = "cross-entropy"
    optimizer: Optimizer = "sgd"
    data: str = "digits:?split=train"
    holdout: str = "digits:?split=test"
    split: Split = Iid()
    devices: Natural0 = 10
    examples: Natural0 = 0
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 10
    precision: Precision = Precision.FP32
    personal: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    tested: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.0
    plan: Plan = Plan()
    selection: Literal["exact", "lottery"] = "exact"
    mode: Literal["synchronous", "buffered"] = "synchronous"
    active: Natural0 = 0
    speeds: Speeds | None = None
    attack: Attack | None = None
    root: Natural0 = 0
    ensemble: Ensemble | None = None
    evaluate_every: Count = 1
    target: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0

    @property
    def structures(self) -> tuple[Group, ...]:
        """The groups; one of all devices if none are named."""
        return self.groups or (Group(model=self.model, width=self.width),)

    @property
    def recipe(self) -> Recipe:
        """Loss and optimiser of the graphs; with FedProx's term if the plan uses it."""
        return Recipe(self.loss, self.optimizer, self.plan.proximal > 0.0, mutual=self.plan.ramp > 0)


def located(source: str) -> str:
    """A source with `$EDGEFL_DATA` filled in.

    Raises:
        ConfigError: the source needs the variable, and it is not set.
    """
    token = f"${DATA_VARIABLE}"
    if token not in source:
        return source
    directory = os.environ.get(DATA_VARIABLE, "")
    if not directory:
        raise ConfigError(
            f"the source {source!r} needs data that is not part of edgefl",
            remedy=f"Set {DATA_VARIABLE} to the directory with the data sets",
        )
    return source.replace(token, directory)
