"""What a compressed model is retrained towards: labels, the original's outputs, or a mixture.

Model: an objective is a function of the model's outputs, the original's outputs for the same inputs, and the labels; it says
which of the two it needs. Towards outputs no label is needed, and the inputs may be others than the original was trained on
(Thonglek et al., IJCNN 2020, doi 10.1109/IJCNN48605.2020.9207190).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch.nn import functional

from edgefl.errors import DataError, ModelError
from edgefl.export.losses import IN_TORCH
from edgefl.recipe import Loss


class Objective(Protocol):
    """What is minimised.

    Attributes:
        needs_labels, needs_original: what `loss` looks at; the other may be None.
    """

    @property
    def needs_labels(self) -> bool: ...  # noqa: D102  said above

    @property
    def needs_original(self) -> bool: ...  # noqa: D102  said above

    def loss(self, outputs: torch.Tensor, original: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:
        """Mean over the examples, a scalar.

        Args:
            outputs: float32, shape `(n, k)`, of the model that is trained.
            original: float32, shape `(n, k)`, of the original for the same inputs.
            labels: int64, shape `(n,)`, or float32, shape `(n, k)`, as the model's loss takes them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Labels:
    """Towards the labels, as the model itself was trained.

    Attributes:
        kind: one of `edgefl.recipe.LOSSES`.
    """

    kind: Loss = "cross-entropy"
    needs_labels: ClassVar[bool] = True
    needs_original: ClassVar[bool] = False

    def loss(self, outputs: torch.Tensor, original: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002  one signature for all
        """See `Objective`."""
        return IN_TORCH[self.kind](outputs, _given(labels, "labels"))


@dataclass(frozen=True, slots=True)
class Outputs:
    """Towards the original's outputs, by squared error of the logits (Ba and Caruana 2014, https://arxiv.org/abs/1312.6184)."""

    needs_labels: ClassVar[bool] = False
    needs_original: ClassVar[bool] = True

    def loss(self, outputs: torch.Tensor, original: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002  one signature for all
        """See `Objective`."""
        return functional.mse_loss(outputs, _given(original, "the original's outputs"))


@dataclass(frozen=True, slots=True)
class Distillation:
    """Towards the original's softened probabilities and, in part, the labels (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Attributes:
        temperature: by which logits are divided, above 0; the gradients are brought back to scale by its square.
        labels: weight of cross-entropy with the labels, in [0, 1); 0 needs none.
    """

    temperature: float = 4.0
    labels: float = 0.0
    needs_original: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.temperature > 0.0 and 0.0 <= self.labels < 1.0):
            raise ModelError("a distillation that cannot be", expected="temperature above 0, labels in [0, 1)", found=f"{self}")

    @property
    def needs_labels(self) -> bool:
        """Whether labels have any weight."""
        return self.labels > 0.0

    def loss(self, outputs: torch.Tensor, original: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:
        """See `Objective`."""
        soft = functional.log_softmax(_given(original, "the original's outputs") / self.temperature, dim=1)
        own = functional.log_softmax(outputs / self.temperature, dim=1)
        loss = self.temperature**2 * functional.kl_div(own, soft, reduction="batchmean", log_target=True)
        if not self.needs_labels:
            return loss
        return (1.0 - self.labels) * loss + self.labels * functional.cross_entropy(outputs, _given(labels, "labels"))


def _given(value: torch.Tensor | None, what: str) -> torch.Tensor:
    if value is None:
        raise DataError(
            f"this retraining needs {what}", remedy="Retrain towards the original's outputs where there are no labels"
        )
    return value
