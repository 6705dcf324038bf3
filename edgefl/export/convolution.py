"""Gradients of convolution, in the forms that run fast in ONNX Runtime.

Model: of a convolution `y = conv(x, weight)` of any rank, `convolution_backward` gives the gradients by `x`, `weight` and bias
from the gradient by `y`. The gradient by the weight is, for each tap of the kernel, the product of what the tap saw (a window of
`x`) with the gradient, summed over examples and places. ONNX has no views, so each window is a copy, and copies are what this
module saves: windows along one axis are cut once and stacked; those along the others are then cut from the stack, in long runs.

Which form is fast was measured, and milliseconds per step decided, not the number of operations:

* one tap: one matrix product per example;
* few channels: all taps stacked, one matrix product per example;
* many channels, one group: channels first, so that one product sums over examples and places;
* a channel per group: see `depthwise`;
* gradient by the input at stride 1: a convolution with the flipped kernel, unless that has few outputs and many inputs and taps.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgefl.errors import ModelError
from edgefl.export import depthwise

aten = torch.ops.aten
Ints = Sequence[int]

MAX_TAPS = 121
"""Taps of an 11x11 kernel. More would make a graph of thousands of nodes."""
UNFOLD_ROWS = 128
"""Input channels times taps up to which all taps are stacked: the copy is small and the product large enough to be fast."""
FEW_CHANNELS = 32
MANY_TAPS = 9
"""With at most so many input channels and more taps, a convolution with the flipped kernel gathers more than it multiplies."""


def convolution_forward(  # noqa: PLR0917  ATen's signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,  # noqa: FBT001  ATen's signature
    output_padding: Ints,
    groups: int,
) -> Any:
    """ATen's convolution in another form, where that is faster; elsewhere NotImplemented, which leaves the operator as it is."""
    del output_padding
    if transposed or not _is_depthwise(x.shape[1], weight, groups) or x.dim() != 4:
        return NotImplemented
    stride, padding, dilation = (list(v) * (2 // len(v)) for v in (stride, padding, dilation))
    out = [
        (e + 2 * p - d * (k - 1) - 1) // s + 1
        for e, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    if not depthwise.is_dense(len(x), x.shape[2:], out):
        return NotImplemented
    value = depthwise.dense(x, weight, out, stride, padding, dilation)
    return value if bias is None else value + bias[:, None, None]


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
        by_input = _input_gradient(grad, x.shape, weight, stride, padding, dilation, groups)
    if wanted[1]:
        by_weight = _weight_gradient(grad, x, weight, stride, padding, dilation, groups)
    if wanted[2]:
        by_bias = grad.sum([0, *range(2, 2 + rank)])
    return by_input, by_weight, by_bias


def convolution(
    x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, transposed_by: Ints | None = None
) -> Tensor:
    """Convolution without bias, or the transposed one that adds so many rows at the far end."""
    extra = [0] * len(stride) if transposed_by is None else transposed_by
    result: Tensor = aten.convolution(x, weight, None, stride, padding, dilation, transposed_by is not None, extra, groups)
    return result


def _is_depthwise(channels: int, weight: Tensor, groups: int) -> bool:
    return groups > 1 and groups == channels == len(weight) and math.prod(weight.shape[2:]) > 1


def _input_gradient(
    grad: Tensor, shape: Ints, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    kernel, extent = weight.shape[2:], shape[2:]
    rank = len(kernel)
    if _is_depthwise(shape[1], weight, groups) and depthwise.is_dense(len(grad), extent, grad.shape[2:]):
        return depthwise.dense_input_gradient(grad, weight, extent, stride, padding, dilation)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    flipped_padding = [r - p for r, p in zip(reach, padding, strict=True)]
    out, into = weight.shape[0] // groups, weight.shape[1]
    gathers = math.prod(kernel) > MANY_TAPS and groups == 1 and into <= FEW_CHANNELS and out > into
    if all(s == 1 for s in stride) and min(flipped_padding) >= 0 and not gathers:
        flipped = weight.reshape(groups, out, into, *kernel).transpose(1, 2).reshape(groups * into, out, *kernel)
        flipped = flipped.flip(list(range(2, 2 + rank)))
        return convolution(grad, flipped, stride, flipped_padding, dilation, groups)
    rest = [
        extent[i] - ((grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + reach[i] + 1) for i in range(rank)
    ]  # rows at the far end that no window reached
    return convolution(grad, weight, stride, padding, dilation, groups, transposed_by=rest)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    kernel = weight.shape[2:]
    taps = math.prod(kernel)
    if taps > MAX_TAPS:
        raise ModelError(
            "a convolution's kernel is too large to export its gradient",
            expected=f"at most {MAX_TAPS} taps",
            found=" x ".join(str(k) for k in kernel),
            remedy="Use smaller kernels",
        )
    if _is_depthwise(x.shape[1], weight, groups) and x.dim() == 4:
        return depthwise.weight_gradient(grad, x, kernel, stride, padding, dilation)
    windows = _Windows(kernel, stride, dilation, grad.shape[2:])
    if taps > 1 and groups == 1 and x.shape[1] * taps > UNFOLD_ROWS:
        return _channels_first(grad, x, windows, padding)
    return _per_example(grad, _surrounded(x, padding), windows, groups)


class _Windows:
    """What each tap of a kernel sees of a padded input."""

    def __init__(self, kernel: Ints, stride: Ints, dilation: Ints, out: Ints) -> None:
        self.kernel = tuple(kernel)
        self._ranges = [
            [slice(t * d, t * d + s * (n - 1) + 1, s) for t in range(k)]
            for k, s, d, n in zip(kernel, stride, dilation, out, strict=True)
        ]

    def along_last(self, x: Tensor, axis: int) -> list[Tensor]:
        """`x` cut for each tap of the kernel's last axis, which is this axis of `x`."""
        return [x[(*([slice(None)] * axis), window)] for window in self._ranges[-1]]

    def along_others(self, x: Tensor, first: int) -> Iterator[Tensor]:
        """`x` cut for each tap of the kernel's other axes, row-major; they begin at this axis of `x`."""
        for ranges in itertools.product(*self._ranges[:-1]):
            yield x[(*([slice(None)] * first), *ranges)]


def _surrounded(x: Tensor, padding: Ints, behind: int = 0) -> Tensor:
    """`x` with so many zeros at both ends of its last axes but the very last `behind`."""
    if not any(padding):
        return x
    ends = [p for pad in reversed(padding) for p in (pad, pad)]
    padded: Tensor = aten.constant_pad_nd(x, [0, 0] * behind + ends, 0.0)
    return padded


def _channels_first(grad: Tensor, x: Tensor, windows: _Windows, padding: Ints) -> Tensor:
    """`(o, c, *kernel)`, by one product over all examples and places for each tap of the kernel's leading axes."""
    o, c, rank = grad.shape[1], x.shape[1], x.dim() - 2
    # With several axes to cut along, examples go last: every window is then made of long runs.
    order, last, behind = ([1, 0, 2], 2, 0) if rank == 1 else ([1, *range(2, 2 + rank), 0], rank, 1)
    padded = _surrounded(x.permute(order), padding, behind)
    columns = torch.cat(windows.along_last(padded, last), 0)
    by_place = grad.permute(order).reshape(o, -1).t()
    parts = [torch.mm(seen.reshape(len(columns), -1), by_place) for seen in windows.along_others(columns, 1)]
    return torch.cat(parts, 0).reshape(-1, c, o).permute(2, 1, 0).reshape(o, c, *windows.kernel)


def _per_example(grad: Tensor, x: Tensor, windows: _Windows, groups: int) -> Tensor:
    """`(groups * o, c, *kernel)`, by products for each example and group."""
    n, o, c = len(x), grad.shape[1] // groups, x.shape[1] // groups
    taps = math.prod(windows.kernel)
    by_place = grad.reshape(n * groups, o, -1)
    planes = x.reshape(n * groups, c, *x.shape[2:])
    columns = torch.cat(windows.along_last(planes, x.dim() - 1), 1)
    seen = [rows.reshape(n * groups, columns.shape[1], -1) for rows in windows.along_others(columns, 2)]
    if taps == 1:
        product = _over_examples(torch.bmm(by_place, seen[0].transpose(1, 2)), n, groups)
        return product.reshape(groups * o, c, *windows.kernel)
    if c * taps <= UNFOLD_ROWS:
        seen = [torch.cat(seen, 1)]
    parts = [_over_examples(torch.bmm(rows, by_place.transpose(1, 2)), n, groups) for rows in seen]
    return torch.cat(parts, 1).reshape(groups, taps, c, o).permute(0, 3, 2, 1).reshape(groups * o, c, *windows.kernel)


def _over_examples(product: Tensor, n: int, groups: int) -> Tensor:
    """Sum `(n * groups, rows, columns)` over the examples: `(groups, rows, columns)`."""
    return product.sum(0, keepdim=True) if groups == 1 else product.reshape(n, groups, *product.shape[1:]).sum(0)
