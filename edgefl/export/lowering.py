"""Gradients of convolution and pooling in the forms that run fast in ONNX Runtime.

Model: tracing a training step gives ATen operators. Most have an ONNX form; those in `TABLE` are rewritten while tracing into
others that have one. Everything here is ordinary torch code on shapes that are known while tracing.

Which form is fast was measured, and milliseconds per step decided, not the number of operations:

* weight gradient of a convolution: a matrix product per kernel tap, or one over all taps when there are few channels; never
  a convolution whose kernel is as large as the image;
* input gradient at stride 1: a convolution with the flipped kernel; ConvTranspose only for larger strides;
* ReLU: a product with a mask, not a selection;
* max pooling: indices into the whole tensor, as ONNX gives and takes them, so that no index arithmetic remains.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from edgefl.errors import ModelError
from edgefl.export import operators

aten = torch.ops.aten
Ints = Sequence[int]

MAX_TAPS = 121
"""Taps of an 11x11 kernel. More would make a graph of thousands of nodes."""
UNFOLD_ROWS = 128
"""Input channels times taps up to which all taps are stacked: the copy is small and the product large enough to be fast."""


@cache
def table() -> Mapping[Any, Callable[..., Any]]:
    """Decompositions for tracing: torch's core set with the rewrites of this module."""
    return dict(core_aten_decompositions()) | {
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices.default: max_pool,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.avg_pool2d_backward.default: average_pool_backward,
        aten.threshold_backward.default: threshold_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_average_pool_backward,  # noqa: SLF001  the operator's public name
    }


def convolution_backward(  # noqa: PLR0917  ATen's signature
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Ints | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,  # noqa: FBT001  ATen's signature
    output_padding: Ints,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by input, weight and bias, as `wanted` says. Shapes `(n, o, *out)`, `(n, c, *in)`, `(o, c / groups, *kernel)`.

    Raises:
        ModelError: a transposed convolution, or a kernel of more than `MAX_TAPS` taps.
    """
    del bias_sizes, output_padding
    if transposed:
        raise ModelError(
            "the gradient of a transposed convolution cannot be exported",
            remedy="Replace ConvTranspose by upsampling and a convolution",
        )
    rank = x.dim() - 2
    stride, padding, dilation = (list(v) * (rank // len(v)) for v in (stride, padding, dilation))
    by_input = by_weight = by_bias = None
    if wanted[0]:
        by_input = _input_gradient(grad, x.shape[2:], weight, stride, padding, dilation, groups)
    if wanted[1]:
        by_weight = _weight_gradient(grad, x, weight.shape[2:], stride, padding, dilation, groups)
    if wanted[2]:
        by_bias = grad.sum([0, *range(2, 2 + rank)])
    return by_input, by_weight, by_bias


def _input_gradient(
    grad: Tensor, extent: Ints, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    kernel = weight.shape[2:]
    rank = len(kernel)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    flipped_padding = [r - p for r, p in zip(reach, padding, strict=True)]
    if all(s == 1 for s in stride) and min(flipped_padding) >= 0:
        out, into = weight.shape[0] // groups, weight.shape[1]
        flipped = weight.reshape(groups, out, into, *kernel).transpose(1, 2).reshape(groups * into, out, *kernel)
        flipped = flipped.flip(list(range(2, 2 + rank)))
        return _convolution(grad, flipped, stride, flipped_padding, dilation, groups)
    rest = [
        extent[i] - ((grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + reach[i] + 1) for i in range(rank)
    ]  # rows at the far end that no window reached
    return _convolution(grad, weight, stride, padding, dilation, groups, transposed_by=rest)


def _convolution(
    x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, transposed_by: Ints | None = None
) -> Tensor:
    """Convolution without bias, or the transposed one that adds so many rows at the far end."""
    extra = [0] * len(stride) if transposed_by is None else transposed_by
    result: Tensor = aten.convolution(x, weight, None, stride, padding, dilation, transposed_by is not None, extra, groups)
    return result


def _weight_gradient(grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """Sum over examples of `x_tap @ grad.T` for each tap, where `x_tap` is what that tap of the kernel saw."""
    taps = math.prod(kernel)
    if taps > MAX_TAPS:
        raise ModelError(
            "a convolution's kernel is too large to export its gradient",
            expected=f"at most {MAX_TAPS} taps",
            found=" x ".join(str(k) for k in kernel),
            remedy="Use smaller kernels",
        )
    n, o, c = len(x), grad.shape[1] // groups, x.shape[1] // groups
    extent = grad.shape[2:]
    places = math.prod(extent)
    columns = grad.reshape(n * groups, o, places).transpose(1, 2)
    seen = _taps(x, c, extent, kernel, stride, padding, dilation)
    if c * taps <= UNFOLD_ROWS:
        rows = torch.cat(list(seen), 1).reshape(n * groups, taps * c, places)
        product = _over_examples(torch.bmm(rows, columns), n, groups)
    else:
        parts = [_over_examples(torch.bmm(rows.reshape(n * groups, c, places), columns), n, groups) for rows in seen]
        product = torch.cat(parts, 1)
    return product.reshape(groups, taps, c, o).permute(0, 3, 2, 1).reshape(groups * o, c, *kernel)


def _over_examples(product: Tensor, n: int, groups: int) -> Tensor:
    """Sum `(n * groups, rows, o)` over the examples: `(groups, rows, o)`."""
    return product.sum(0, keepdim=True) if groups == 1 else product.reshape(n, groups, *product.shape[1:]).sum(0)


def _taps(x: Tensor, channels: int, extent: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Iterator[Tensor]:
    """For each kernel tap, row-major, the input values that it met: shape `(n * groups, channels, *extent)`."""
    if any(padding):
        x = aten.constant_pad_nd(x, [p for pad in reversed(padding) for p in (pad, pad)], 0.0)
    planes = x.reshape(-1, channels, *x.shape[2:])
    for tap in itertools.product(*(range(k) for k in kernel)):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        window = (slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, stride, extent, strict=True))
        yield planes[(slice(None), slice(None), *window)]


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """ReLU's gradient as a product with a mask, which takes a tenth of the time of ONNX Runtime's `Where`."""
    return grad * (x > threshold).to(grad.dtype)


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
        spread = (grad * (1.0 / (divisor or math.prod(kernel))))[..., :, None, :, None]
        return spread.expand(*grad.shape[:-1], kernel[0], out[1], kernel[1]).reshape(x.shape)
    counts = window_counts(extent, out, kernel, stride, padding, divisor, include_pad=count_include_pad)
    planes = (grad * counts.reciprocal()).reshape(-1, 1, *out)
    reach = [(o - 1) * s + k for o, s, k in zip(out, stride, kernel, strict=True)]
    spread = _convolution(planes, torch.ones(1, 1, *kernel), stride, [0, 0], [1, 1], 1, transposed_by=[0, 0])
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
