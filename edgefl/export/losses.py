"""The losses, each with its gradient written down, for the training step; and as torch has them, to be compared with.

Model: `loss(outputs, y, w) -> (mean loss, gradient by outputs)`. `outputs` is `(n, k)`; `w` is `(n,)`, 1 for a real row and 0 for
padding, at least one 1. Means are over the real rows and, for `bce` and `mse`, over the outputs, as torch's own losses take them.
A gradient that is given keeps its part of the graph small.

Of a model with exits `outputs` is `(n, exits, classes)`, and any loss of labels is the mean over its exits.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgefl.recipe import LABELLED, Loss

LossAndGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy; `y` int64 `(n,)`, labels."""
    truth = (y[:, None] == torch.arange(logits.shape[1])[None, :]).to(logits.dtype)
    logs = torch.log_softmax(logits, 1)
    share = (w / w.sum())[:, None]
    return -(truth * logs * share).sum(), (logs.exp() - truth) * share


def masked_cross_entropy(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the classes that the real rows have; `y` int64 `(n,)`, labels."""
    truth = (y[:, None] == torch.arange(logits.shape[1])[None, :]).to(logits.dtype)
    absent = (truth * w[:, None]).sum(0) == 0.0
    return cross_entropy(torch.where(absent[None, :], torch.full_like(logits, MASKED), logits), y, w)


def _masked_in_torch(logits: Tensor, y: Tensor) -> Tensor:
    absent = torch.ones(logits.shape[1], dtype=torch.bool).index_fill(0, y, value=False)
    return functional.cross_entropy(logits.masked_fill(absent, -torch.inf), y)


def bce(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of logits; `y` float32 `(n, k)` in [0, 1]. In the form that does not overflow."""
    share = (w / (w.sum() * logits.shape[1]))[:, None]
    value = logits.relu() - logits * y + (1.0 + (-logits.abs()).exp()).log()
    return (value * share).sum(), (logits.sigmoid() - y) * share


def mse(outputs: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error; `y` float32 `(n, k)`."""
    share = (w / (w.sum() * outputs.shape[1]))[:, None]
    off = outputs - y
    return (off * off * share).sum(), off * share * 2.0


def self_distillation(logits: Tensor, y: Tensor, w: Tensor, mutual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each exit, and how far it is from what each of the others believes; both are means.

    With `p_i` the probabilities of exit i, and `q_i` the mean of those of the other exits, whose own gradient is left out, its
    loss is `-log p_i[y] + mean over j of KL(p_j || p_i)`. Over all exits the second terms sum up to
    `sum over i of (p_i - q_i) log p_i`; the gradient by the logits of exit i is `(p_i - truth) + (p_i - q_i)`.

    Args:
        logits: `(n, exits, classes)`.
        y: int64 `(n,)`, labels.
        w: `(n,)`.
        mutual: `()`, weight of the second terms; None for 1.
    """
    exits, classes = logits.shape[1:]
    truth = (y[:, None] == torch.arange(classes)[None, :]).to(logits.dtype)[:, None]
    share = (w / (w.sum() * exits))[:, None, None]
    logs = torch.log_softmax(logits, 2)
    p = logs.exp()
    others = (p.sum(1, keepdim=True) - p) / (exits - 1) if exits > 1 else p
    away = p - others if mutual is None else (p - others) * mutual
    return ((away - truth) * logs * share).sum(), (p - truth + away) * share


def _self_distillation_in_torch(logits: Tensor, y: Tensor, mutual: float = 1.0) -> Tensor:
    exits = logits.unbind(1) if logits.dim() == 3 else (logits,)
    loss = torch.stack([functional.cross_entropy(one, y) for one in exits]).mean()
    logs = [functional.log_softmax(one, 1) for one in exits]
    taught = [
        functional.kl_div(own, other.detach(), reduction="batchmean", log_target=True)
        for i, own in enumerate(logs)
        for j, other in enumerate(logs)
        if i != j
    ]
    return loss + mutual * torch.stack(taught).mean() if taught else loss


MASKED = -1e30
"""Logit of a class that is left out: its probability is 0, and so is its gradient. Infinite ones would make NaN of 0."""
WITH_GRADIENT: Mapping[str, LossAndGradient] = {
    "cross-entropy": cross_entropy,
    "bce": bce,
    "mse": mse,
    "masked-cross-entropy": masked_cross_entropy,
    "self-distillation": self_distillation,
}
IN_TORCH: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": functional.cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "masked-cross-entropy": _masked_in_torch,
    "self-distillation": _self_distillation_in_torch,
}
"""The same losses as torch defines them: what every export is compared with."""
EVALUATED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {**IN_TORCH, **dict.fromkeys(LABELLED, functional.cross_entropy)}
"""The losses that models are judged by."""


def loss_and_gradient(loss: Loss, outputs: Tensor, y: Tensor, w: Tensor, mutual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean loss and its gradient by the outputs, which are `(n, k)` or, of a model with exits, `(n, exits, classes)`.

    `mutual` is the weight of what exits learn of each other, for `self-distillation`; None for 1.
    """
    if loss == "self-distillation":
        return self_distillation(outputs, y, w, mutual)
    if outputs.dim() < 3:
        return WITH_GRADIENT[loss](outputs, y, w)
    n, exits, classes = outputs.shape
    value, gradient = WITH_GRADIENT[loss](outputs.reshape(n * exits, classes), _each(y, exits), _each(w, exits))
    return value, gradient.reshape(n, exits, classes)


def loss_in_torch(loss: Loss, outputs: Tensor, y: Tensor, mutual: float = 1.0) -> Tensor:
    """The same as torch defines it, without padding, to be differentiated."""
    if loss == "self-distillation":
        return _self_distillation_in_torch(outputs, y, mutual)
    if outputs.dim() < 3:
        return IN_TORCH[loss](outputs, y)
    return IN_TORCH[loss](outputs.flatten(0, 1), _each(y, outputs.shape[1]))


def _each(values: Tensor, exits: int) -> Tensor:
    """`(n,)`, each value once for each exit of its row."""
    return values[:, None].expand(len(values), exits).reshape(-1)
