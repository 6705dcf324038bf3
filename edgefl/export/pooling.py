"""Pooling and its gradients, in the forms that run fast in ONNX Runtime.

Model: the indices of max pooling count through the whole tensor, as ONNX gives and takes them, so that no index arithmetic is
left to the backward pass. Windows that do not overlap send their gradients back by one MaxUnpool, others by a sum of scatters.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgefl.errors import ModelError
from edgefl.export import operators
from edgefl.export.convolution import convolution

aten = torch.ops.aten
Ints = Sequence[int]


def max_pool(
    x: Tensor,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0, 0),
    dilation: Ints = (1, 1),
    ceil_mode: bool = False,  # noqa: FBT001, FBT002  ATen's signature
) -> tuple[Tensor, Tensor]:
    """ATen's max pooling of `(n, c, h, w)` or `(c, h, w)` with indices into the whole tensor."""
    kernel, stride, padding, dilation = _pairs(kernel, stride or kernel, padding, dilation)
    batched = x if x.dim() == 4 else x[None]
    value, index = operators.max_pool(batched, kernel, stride, padding, dilation, ceil_mode)
    return (value, index) if x.dim() == 4 else (value[0], index[0])


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,  # noqa: FBT001  ATen's signature
    index: Tensor,
) -> Tensor:
    """Each output's gradient goes to the input that was the largest; `index` is what `max_pool` gave."""
    del ceil_mode
    kernel, stride, padding, dilation = _pairs(kernel, stride or kernel, padding, dilation)
    apart = all(k <= s for k, s in zip(kernel, stride, strict=True)) and max(dilation) == 1 and not any(padding)
    inside = all((o - 1) * s + k <= i for o, s, k, i in zip(grad.shape[-2:], stride, kernel, x.shape[-2:], strict=True))
    result: Tensor = (
        operators.max_unpool(grad, index, list(x.shape), kernel, stride)
        if apart and inside and x.dim() == 4
        else operators.scatter_sum(grad, index, list(x.shape))
    )
    return result


def average_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,  # noqa: FBT001  ATen's signature
    count_include_pad: bool,  # noqa: FBT001
    divisor: int | None,
) -> Tensor:
    """Each output's gradient is shared by the inputs of its window."""
    kernel, stride, padding = _pairs(kernel, stride or kernel, padding)
    extent, out = x.shape[-2:], grad.shape[-2:]
    if (
        not ceil_mode
        and not any(padding)
        and kernel == stride
        and all(o * k == i for o, k, i in zip(out, kernel, extent, strict=True))
    ):
        share = grad * (1.0 / (divisor or math.prod(kernel)))
        if list(out) == [1, 1]:
            return torch.mm(share.reshape(-1, 1), torch.ones(1, math.prod(kernel))).reshape(x.shape)  # faster than ONNX's Expand
        spread = share[..., :, None, :, None]
        return spread.expand(*grad.shape[:-1], kernel[0], out[1], kernel[1]).reshape(x.shape)
    counts = window_counts(extent, out, kernel, stride, padding, divisor, include_pad=count_include_pad)
    planes = (grad * counts.reciprocal()).reshape(-1, 1, *out)
    reach = [(o - 1) * s + k for o, s, k in zip(out, stride, kernel, strict=True)]
    spread = convolution(planes, torch.ones(1, 1, *kernel), stride, [0, 0], [1, 1], 1, transposed_by=[0, 0])
    # Windows may end before the last input (floor) or reach beyond the padding (ceil): bring to size, then cut the padding off.
    short = [max(0, e + p - r) for e, p, r in zip(extent, padding, reach, strict=True)]
    spread = aten.constant_pad_nd(spread, [0, short[1], 0, short[0]], 0.0)
    top, left = padding
    result: Tensor = spread[:, :, top : top + extent[0], left : left + extent[1]].reshape(x.shape)
    return result


def window_counts(
    extent: Ints, out: Ints, kernel: Ints, stride: Ints, padding: Ints, divisor: int | None, *, include_pad: bool
) -> Tensor:
    """By how much torch divides each window's sum: shape `(*out)`."""
    axes = []
    for e, o, k, s, p in zip(extent, out, kernel, stride, padding, strict=True):
        low, high = (-p, e + p) if include_pad else (0, e)
        starts = torch.arange(o) * s - p
        axes.append((starts + k).clamp(max=high) - starts.clamp(min=low))
    counts = (axes[0][:, None] * axes[1][None, :]).float()
    return counts if divisor is None else torch.full_like(counts, float(divisor))


def adaptive_average_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """As average pooling, where the output's size divides the input's.

    Raises:
        ModelError: it does not; then the windows are of different sizes.
    """
    extent, out = x.shape[-2:], grad.shape[-2:]
    if any(e % o for e, o in zip(extent, out, strict=True)):
        raise ModelError(
            "the gradient of this adaptive average pooling cannot be exported",
            expected="an output size that divides the input size",
            found=f"{tuple(extent)} to {tuple(out)}",
            remedy="Choose another output size, for example 1",
        )
    kernel = [e // o for e, o in zip(extent, out, strict=True)]
    return average_pool_backward(grad, x, kernel, kernel, [0, 0], False, True, None)  # noqa: FBT003  ATen's signature


def _pairs(*values: Ints) -> tuple[list[int], ...]:
    return tuple(list(v) * (2 // len(v)) for v in values)
