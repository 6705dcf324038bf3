"""A model made small: pruned, then with few values that it shares, each stage retrained; the result is a vector to be encoded.

Model: first the weights are trained while ever more of them become zero; then the rest is clustered and the centroids are
trained, or it is trained as a file of few bits rounds it. All towards the same objective: with labels, or towards the outputs of
the model as it was, which needs none. Each stage can be switched off; with no steps a stage is done without retraining.

Rules: the module that is given is not changed. `encode_weights(vector, layout, Precision.CODEBOOK)` of the result is lossless, or
that of the precision which it was rounded to.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from edgefl.codec.precision import Precision
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.tensors import set_training, vector_of
from edgefl.layout import Float32
from edgefl.retrain.batches import Augmentation
from edgefl.retrain.centroids import Shared, Sharing
from edgefl.retrain.flat import FlatModule
from edgefl.retrain.objective import Objective, Outputs
from edgefl.retrain.pruning import Pruning
from edgefl.retrain.rounding import Rounded
from edgefl.retrain.training import Constraint, Pruned, Schedule, train


@dataclass(frozen=True, slots=True)
class Compression:
    """How a model is made small.

    Attributes:
        pruning: what is pruned, or None.
        pruned: training while it is pruned and after it.
        sharing: how values are shared, or None.
        shared: training of the shared values, or of the rounded ones.
        objective: of both trainings.
        augmentation: of the inputs of both.
        rounding: the precision, int4 or ternary, that weights are rounded to instead of sharing values; None for neither.

    Raises:
        ModelError: values are to be both shared and rounded, or rounded to another precision.
    """

    pruning: Pruning | None = field(default_factory=Pruning)
    pruned: Schedule = field(default_factory=lambda: Schedule(4000))
    sharing: Sharing | None = field(default_factory=Sharing)
    shared: Schedule = field(default_factory=lambda: Schedule(1000, rate=2e-4))
    objective: Objective = field(default_factory=Outputs)
    augmentation: Augmentation = field(default_factory=Augmentation)
    rounding: Precision | None = None

    def __post_init__(self) -> None:
        if self.rounding and (self.sharing or self.rounding not in (Precision.INT4, Precision.TERNARY)):
            expected = "int4 or ternary, and no sharing beside it"
            raise ModelError("weights that cannot be rounded so", expected=expected, found=f"{self.rounding}, {self.sharing}")


def compressed(
    module: nn.Module,
    examples: Examples | None,
    compression: Compression,
    *,
    original: nn.Module | None = None,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Float32:
    """The flat vector of a smaller model that does the same.

    Args:
        module: trained; it is not changed.
        examples: to retrain on, in the module's input shape; labels only if the objective needs them. None: no retraining.
        compression: how.
        original: whose outputs objectives without labels go towards, with the same inputs and outputs as the module; it is not
            changed. None: the module as it is given.
        seed: of everything random.
        on_progress: told what is being done, a line at a time.

    Returns:
        float32, in the layout of the module (`edgefl.export.tensors.layout_of`).

    Raises:
        DataError: the examples have no labels and need them.
        ModelError: the retrained weights are not finite.
    """
    teacher = set_training(copy.deepcopy(original or module), on=False)
    flat = FlatModule(copy.deepcopy(module))

    def stage(name: str, constraint: Constraint, schedule: Schedule) -> None:
        if examples is None or schedule.steps == 0:
            constraint.push(1.0)
            return
        train(
            flat,
            examples,
            compression.objective,
            schedule,
            constraint=constraint,
            original=teacher,
            augmentation=compression.augmentation,
            seed=seed,
            on_progress=lambda done: on_progress(f"{name}: {done:.0%}"),
        )

    stage("pruning", Pruned(flat, compression.pruning), compression.pruned)
    if compression.sharing:
        shared = Shared(flat, compression.sharing)
        stage("sharing", shared, compression.shared)
        shared.settle()
    if compression.rounding:
        stage("rounding", Rounded(flat, compression.rounding), compression.shared)
    vector = vector_of(flat.module)
    if not np.isfinite(vector).all():
        raise ModelError("retraining went astray: weights are not finite", remedy="Use a lower rate")
    return vector
