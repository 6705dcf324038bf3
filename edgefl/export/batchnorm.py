"""BatchNorm with explicit state: its running statistics are inputs and outputs of the training step, not side effects.

Model: torch's BatchNorm writes to its own buffers while it computes, which no graph of pure operators can. `attach` gives each
such layer of a module another forward function. In training mode it normalises by the mean and variance of the batch's real rows
(padding has weight 0 in both, so a partly filled batch is exact) and hands the new running statistics to a `Statistics`; in
evaluation mode it normalises by the running ones, which are ordinary tensors of the layout.

The update is torch's: `running = (1 - momentum) * running + momentum * batch`, with the unbiased variance. (Ioffe and Szegedy,
ICML 2015, https://arxiv.org/abs/1502.03167.) `num_batches_tracked`, which only a momentum of None reads, is left out.
"""

import functools
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgefl.errors import ModelError

SMALLEST_VARIANCE = 0.0
"""Updates are quantised, so a mean of running variances may come out below zero on its way; it is then taken for zero."""


@dataclass(slots=True)
class Statistics:
    """What the BatchNorm layers of one module share in one forward pass.

    Attributes:
        mask: float32 `(n,)`, 1 for real rows and 0 for padding; None if all are real.
        updated: new running statistics by name, after a pass in training mode.
    """

    mask: Tensor | None = None
    updated: dict[str, Tensor] = field(default_factory=dict)


def attach(module: nn.Module, name: str) -> Statistics:
    """Give the module's BatchNorm layers the explicit forward function.

    Args:
        module: changed in place; names and values of its tensors stay.
        name: the model's, for errors.

    Raises:
        ModelError: a layer has no running statistics, or averages them over all batches.
    """
    shared = Statistics()
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            if layer.running_mean is None or layer.momentum is None:
                raise ModelError(
                    f"BatchNorm layer {path!r} of model {name!r} cannot be exported",
                    expected="running statistics with a momentum",
                    found="track_running_stats=False" if layer.running_mean is None else "momentum=None",
                    remedy="Use the layer's defaults, or GroupNorm",
                )
            layer.forward = functools.partial(_normalise, layer, path + "." if path else "", shared)  # type: ignore[method-assign]  # on this copy only
    return shared


def _normalise(layer: _BatchNorm, prefix: str, shared: Statistics, x: Tensor) -> Tensor:
    per_channel = [1, -1, *([1] * (x.dim() - 2))]
    if layer.training:
        mean, variance = _of_batch(layer, prefix, shared, x)
    else:
        mean, variance = layer.running_mean, layer.running_var.clamp(min=SMALLEST_VARIANCE)  # type: ignore[union-attr, assignment]  # checked by attach
    scale = (variance + layer.eps).rsqrt()
    value = (x - mean.reshape(per_channel)) * scale.reshape(per_channel)
    if layer.affine:
        value = value * layer.weight.reshape(per_channel) + layer.bias.reshape(per_channel)
    return value


def _of_batch(layer: _BatchNorm, prefix: str, shared: Statistics, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over the real rows; the new running statistics go to `shared`."""
    axes, per_channel, mask = [0, *range(2, x.dim())], [1, -1, *([1] * (x.dim() - 2))], shared.mask
    if mask is None:  # traced for its operators alone
        mean = x.mean(axes)
        return mean, (x - mean.reshape(per_channel)).square().mean(axes)
    if len(x) != len(mask):
        raise ModelError(
            "a BatchNorm layer sees something else than one row per example",
            expected=f"{len(mask)} rows",
            found=f"{len(x)}",
            remedy="Keep the batch axis first and unmerged before BatchNorm, or use GroupNorm",
        )
    weight = mask.reshape([-1, *([1] * (x.dim() - 1))])
    count = mask.sum() * float(x[0, 0].numel())
    mean = (x * weight).sum(axes) / count
    centred = (x - mean.reshape(per_channel)) * weight
    variance = centred.square().sum(axes) / count
    _update(layer, prefix, shared, mean, variance, count)
    return mean, variance


def _update(layer: _BatchNorm, prefix: str, shared: Statistics, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    rate = layer.momentum
    if rate is None or layer.running_mean is None or layer.running_var is None:
        return
    unbiased = variance * (count / (count - 1.0).clamp(min=1.0))  # of a single value torch has no variance; here it counts as 0
    for kind, running, batch in (("mean", layer.running_mean, mean), ("var", layer.running_var, unbiased)):
        shared.updated[f"{prefix}running_{kind}"] = running * (1.0 - rate) + batch.detach() * rate
