"""Group normalisation and its gradient, with as few passes over the activations as possible.

Model: `y = centred * rstd * weight + bias`, `centred = x - mean`, mean and variance over a group of channels of one example.
Everything that has one value per example and channel, or less, is computed apart and is nearly free. What remains for a whole
tensor is a shift, a square and affine maps; ONNX Runtime's own operators for it cost more, and keep nothing for the gradient.

The gradient by `x` is `grad * weight * rstd + centred * slope + shift`, where slope and shift follow from the sums of `grad` and
of `grad * centred` over each channel; the sums over examples of the same give the gradients by bias and weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgefl.export import operators


def native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, plane: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ATen's group normalisation of `(n, channels, ...)`: value, mean and reciprocal deviation, the latter `(n, groups)`."""
    grouped = x.reshape(n * groups, -1)
    mean = grouped.mean(1, keepdim=True)
    centred = grouped - mean
    rstd = ((centred * centred).mean(1, keepdim=True) + eps).sqrt().reciprocal()
    scale = (_gain(weight, channels, groups) * rstd.reshape(n, groups, 1)).reshape(-1)
    shift = (torch.zeros(channels) if bias is None else bias).expand(n, channels).reshape(-1)
    value = operators.affine(centred.reshape(n * channels, plane), scale, shift)
    return value.reshape(x.shape), mean.reshape(n, groups), rstd.reshape(n, groups)


def native_group_norm_backward(  # noqa: PLR0917  ATen's signature
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    channels: int,
    plane: int,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by `x`, weight and bias, as `wanted` says."""
    size = plane * (channels // groups)
    centred = x.reshape(n * groups, size) - mean.reshape(n * groups, 1)
    rstd = rstd.reshape(n, groups, 1)
    by_channel = grad.reshape(n, channels, plane)
    sums = by_channel.sum(2).reshape(n, groups, -1)
    products = (by_channel * centred.reshape(n, channels, plane)).sum(2).reshape(n, groups, -1)
    by_input = by_weight = by_bias = None
    if wanted[0]:
        gain = _gain(weight, channels, groups)
        shift = (sums * gain).sum(2, keepdim=True) * rstd * (-1.0 / size)
        slope = (products * gain).sum(2, keepdim=True) * (rstd * rstd * rstd) * (-1.0 / size)
        ones = torch.ones(channels // groups)
        inner = operators.affine(by_channel.reshape(n * channels, plane), (gain * rstd).reshape(-1), (shift * ones).reshape(-1))
        outer = operators.affine(centred.reshape(n * channels, plane), (slope * ones).reshape(-1), torch.zeros(n * channels))
        by_input = (inner + outer).reshape(x.shape)
    if wanted[1]:
        by_weight = (products * rstd).sum(0).reshape(channels)
    if wanted[2]:
        by_bias = sums.sum(0).reshape(channels)
    return by_input, by_weight, by_bias


def _gain(weight: Tensor | None, channels: int, groups: int) -> Tensor:
    """`(groups, channels / groups)`."""
    return (torch.ones(channels) if weight is None else weight).reshape(groups, -1)
