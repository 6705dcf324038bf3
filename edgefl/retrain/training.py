"""The loop of every retraining: batches, an objective, Adam with a falling rate, and what holds the weights where they belong.

Model: a *constraint* says what the optimiser moves (a vector) and how the module follows from it. Free training moves the weights
themselves; pruning moves them and sets some to zero; sharing (`edgefl.retrain.centroids`) moves centroids.

Rules: deterministic by seed on one machine with one thread; the original is only looked at. Adam: Kingma and Ba 2014,
https://arxiv.org/abs/1412.6980; the rate falls by a half cosine (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.tensors import outputs_of, set_training
from edgefl.retrain.batches import Augmentation, batches
from edgefl.retrain.flat import FlatModule
from edgefl.retrain.objective import Objective
from edgefl.retrain.pruning import Pruning, kept

LAST_RATE = 0.02
"""Part of the rate that is left in the last step."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: batches, from 0.
        batch: examples in one, at least 1.
        rate: learning rate of the first step, above 0.

    Raises:
        ModelError: a number is out of range.
    """

    steps: int
    batch: int = 128
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or not self.rate > 0.0:
            raise ModelError("a schedule that cannot be", expected="steps from 0, batch from 1, rate above 0", found=f"{self}")

    def at(self, progress: float) -> float:
        """Learning rate at a point of the training in [0, 1]."""
        return self.rate * (LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * progress)))


class Constraint(Protocol):
    """What the optimiser moves, and how the weights follow."""

    @property
    def moved(self) -> torch.Tensor:
        """The vector that the optimiser moves; its `grad` is set by `pull`."""
        ...

    def pull(self) -> None:
        """Bring the weights' gradients to what is moved."""
        ...

    def push(self, progress: float) -> None:
        """Bring what was moved to the weights; `progress` in [0, 1]."""
        ...


class Pruned:
    """The weights themselves, of which ever more are zero; with no pruning all of them are free.

    Args:
        flat: the module.
        pruning: how much is pruned, or None.
    """

    def __init__(self, flat: FlatModule, pruning: Pruning | None) -> None:
        self._flat = flat
        self._pruning = pruning
        self._share = 0.0
        self._removed: torch.Tensor | None = None
        self.moved = flat.values

    def pull(self) -> None:
        """The gradients are those of the weights."""
        self.moved.grad = self._flat.gradients

    def push(self, progress: float) -> None:
        """Remove more when it is time, and keep at zero what was removed."""
        share = self._pruning.share(progress) if self._pruning else 0.0
        if self._pruning and share > self._share:
            left = kept(self._flat.values.numpy(), self._flat.layout, share, self._pruning.scope)
            self._removed = torch.from_numpy(np.flatnonzero(~left))
            self._share = share
        if self._removed is not None:
            self._flat.values[self._removed] = 0.0


def train(
    flat: FlatModule,
    examples: Examples,
    objective: Objective,
    schedule: Schedule,
    *,
    constraint: Constraint,
    original: nn.Module | None,
    augmentation: Augmentation,
    seed: int,
    on_progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Train a module in place.

    Args:
        flat: the module.
        examples: with labels if the objective needs them.
        objective: what is minimised.
        schedule: how long and how fast.
        constraint: what the optimiser moves.
        original: gives the outputs that some objectives need; in evaluation mode.
        augmentation: of the inputs.
        seed: of the order and of everything random.
        on_progress: told the part of the steps that are done, now and then.

    Raises:
        DataError: labels, or the original, are needed and not there.
    """
    optimiser = torch.optim.Adam([constraint.moved], lr=schedule.rate)
    rng = np.random.default_rng([seed, 77])
    set_training(flat.module, on=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps = batches(examples, schedule.batch, schedule.steps, augmentation, rng)
        for step, (x, y) in enumerate(steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.at(step / schedule.steps)
            wanted = _outputs(original, x) if objective.needs_original else None
            flat.backward(objective.loss(outputs_of(flat.module, x), wanted, y if objective.needs_labels and y.numel() else None))
            constraint.pull()
            optimiser.step()
            constraint.push((step + 1) / schedule.steps)
            if step % 100 == 99:
                on_progress((step + 1) / schedule.steps)
    set_training(flat.module, on=False)


def _outputs(original: nn.Module | None, x: torch.Tensor) -> torch.Tensor | None:
    with torch.no_grad():
        return None if original is None else outputs_of(original, x)
