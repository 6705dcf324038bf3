"""The recipe of a version: which loss its graphs compute and which optimiser their training step takes.

Model: both are part of the exported graphs, so they are chosen at `push` and stand in the manifest. The numbers that every
round may choose anew (learning rate, weights of the proximal term and of mutual teaching) are inputs of the graphs and come with
the round's task; the optimisers' other constants are fixed here, once, for torch, both engines and the verification.

Rule: optimisers (torch.optim.SGD, torch.optim.AdamW; Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) keep a second flat
vector that starts at zero in every round and never leaves the device. Averaged weights are another point than the one at which a
device's old moments were taken, and a board that is switched off would lose them anyway: a fresh start is the same for all.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

Loss = Literal["cross-entropy", "bce", "mse", "masked-cross-entropy", "self-distillation"]
Optimizer = Literal["sgd", "momentum", "adamw"]
LOSSES: tuple[str, ...] = get_args(Loss)
LABELLED: tuple[Loss, ...] = ("cross-entropy", "masked-cross-entropy", "self-distillation")
"""Losses whose targets are class labels."""
LESSONS: tuple[Loss, ...] = ("cross-entropy", "self-distillation")
"""Losses that can teach soft labels, by a row of the example for each class, weighted by its probability."""
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01
"""Of AdamW: decoupled from the gradient, and multiplied by the learning rate, as in torch."""

STATES: Mapping[str, tuple[str, ...]] = {"sgd": (), "momentum": ("velocity",), "adamw": ("mean", "square")}
"""What each optimiser keeps for every trained parameter, in the graph's order."""


class Recipe(msgspec.Struct, frozen=True, array_like=True):
    """Loss and optimiser of a version.

    Attributes:
        loss: `cross-entropy` of class labels; `bce`, the binary cross-entropy of logits with targets in [0, 1], mean over the
            outputs; `mse`, the mean squared error to targets, or to the input itself where there are none (autoencoder);
            `masked-cross-entropy`, which leaves the classes that no row of a step's batch has out of the softmax, so that a
            device with few classes does not unlearn the others (HeteroFL, Diao et al., ICLR 2021,
            https://arxiv.org/abs/2010.01264, masks by device); it is evaluated as cross-entropy; `self-distillation`, for models
            with several exits: cross-entropy plus the Kullback-Leibler divergence from what the other exits believe, mean over
            the exits (DepthFL, Kim et al., ICLR 2023, https://openreview.net/forum?id=pf8RIZTMU58). The other losses of labels
            are means over the exits, too. A model with exits is evaluated by the cross-entropy of its one answer.
        optimizer: `sgd`; `momentum`, SGD with momentum 0.9; `adamw` with torch's default constants.
        proximal: whether the step can add FedProx's term `mu/2 * |w - w_round|^2` (Li et al., MLSys 2020,
            https://arxiv.org/abs/1812.06127); it costs the portable step three more passes over the parameters.
        mutual: whether each round chooses the weight of what exits learn of each other, with the loss `self-distillation`;
            otherwise it is 1.
    """

    loss: Loss = "cross-entropy"
    optimizer: Optimizer = "sgd"
    proximal: bool = False
    mutual: bool = False

    @property
    def labels(self) -> bool:
        """Whether the targets are class labels."""
        return self.loss in LABELLED

    @property
    def classifies(self) -> bool:
        """Whether answers are right or wrong; otherwise the loss is all there is to measure."""
        return self.loss != "mse"


PLAIN = Recipe()
"""Cross-entropy and SGD: the recipe of a version that says nothing else."""


def corrections(step: int) -> tuple[float, float]:
    """AdamW's bias corrections `1 / (1 - beta1^t)` and `1 / sqrt(1 - beta2^t)` in step t, from 1."""
    return 1.0 / (1.0 - BETAS[0] ** step), float((1.0 - BETAS[1] ** step) ** -0.5)
