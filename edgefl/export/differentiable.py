"""Forward operators rewritten so that onnxruntime-training 1.19 can differentiate them.

* Group normalisation: ONNX's own, and the InstanceNormalization that exporters use for it, have no gradient there.
* Average pooling: its gradient kernel divides by zero and takes the process down. Windows that do not overlap are a mean over
  new axes; others are a convolution with equal weights.
* ELU and softplus: no gradient there.

The first axis stays symbolic throughout: these run while a forward graph for any number of rows is traced.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgefl.export.pooling import window_counts

aten = torch.ops.aten


def differentiable() -> dict[Any, Callable[..., Any]]:
    """Decompositions for a forward graph: torch's default set with those of this module."""
    table: Mapping[Any, Callable[..., Any]] = torch.export.default_decompositions()
    return dict(table) | {
        aten.native_group_norm.default: _native_group_norm,
        aten.group_norm.default: group_norm,
        aten.avg_pool2d.default: average_pool,
        aten._adaptive_avg_pool2d.default: adaptive_average_pool,  # noqa: SLF001  the operator's public name
        aten.elu.default: elu,
        aten.softplus.default: softplus,
    }


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: FBT001, FBT002  ATen's signature
) -> Tensor:
    """Group normalisation of `(n, channels, ...)` in primitive operators."""
    del cudnn_enabled
    channels = x.shape[1]
    grouped = x.reshape(-1, groups, math.prod(x.shape[1:]) // groups)
    centred = grouped - grouped.mean(2, keepdim=True)
    scale = 1.0 / ((centred * centred).mean(2, keepdim=True) + eps).sqrt()
    value = (centred * scale).reshape(-1, *x.shape[1:])
    per_channel = [1, channels, *([1] * (x.dim() - 2))]
    if weight is not None:
        value = value * weight.reshape(per_channel)
    if bias is not None:
        value = value + bias.reshape(per_channel)
    return value


def _native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, plane: int, groups: int, eps: float
) -> tuple[Tensor, None, None]:
    del n, channels, plane
    return group_norm(x, groups, weight, bias, eps), None, None  # the statistics are for a backward pass that is not here


def adaptive_average_pool(x: Tensor, out: Sequence[int]) -> Any:
    """Average pooling to a given size that divides the input's; other sizes are left to ATen."""
    h, w = x.shape[-2:]
    if h % out[0] or w % out[1]:
        return NotImplemented
    return average_pool(x, [h // out[0], w // out[1]])


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """ELU; also SELU and CELU, which ATen writes as ELU with scales."""
    return (x.relu() + ((-(-x * input_scale).relu()).exp() - 1.0) * alpha) * scale


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """`log(1 + exp(beta * x)) / beta`, in the form that does not overflow."""
    del threshold  # beyond it ATen gives x itself, which this form comes to
    scaled = x * beta
    return (scaled.relu() + ((-scaled.abs()).exp() + 1.0).log()) * (1.0 / beta)


def average_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,  # noqa: FBT001, FBT002  ATen's signature
    count_include_pad: bool = True,  # noqa: FBT001, FBT002
    divisor: int | None = None,
) -> Tensor:
    """Average pooling of `(n, c, h, w)` or `(c, h, w)`."""
    kernel, padding = (list(v) * (2 // len(v)) for v in (kernel, padding))
    stride = list(stride) * (2 // len(stride)) if stride else kernel
    h, w = x.shape[-2:]
    apart = stride == kernel and not any(padding) and h % kernel[0] == 0 and w % kernel[1] == 0
    if apart and divisor is None:
        mean: Tensor = x.reshape(-1, h // kernel[0], kernel[0], w // kernel[1], kernel[1]).mean((2, 4))
        return mean.reshape(-1, *x.shape[1:-2], h // kernel[0], w // kernel[1])
    out = [_outputs(e, k, s, p, ceil_mode=ceil_mode) for e, k, s, p in zip((h, w), kernel, stride, padding, strict=True)]
    beyond = [max(0, (o - 1) * s + k - e - 2 * p) for o, s, k, e, p in zip(out, stride, kernel, (h, w), padding, strict=True)]
    planes = aten.constant_pad_nd(
        x.reshape(-1, 1, h, w), [padding[1], padding[1] + beyond[1], padding[0], padding[0] + beyond[0]], 0.0
    )
    sums = aten.convolution(planes, torch.ones(1, 1, *kernel), None, stride, [0, 0], [1, 1], False, [0, 0], 1)  # noqa: FBT003  ATen's signature
    counts = window_counts((h, w), out, kernel, stride, padding, divisor, include_pad=count_include_pad)
    result: Tensor = (sums * counts.reciprocal()).reshape(-1, *x.shape[1:-2], *out)
    return result


def _outputs(extent: int, kernel: int, stride: int, padding: int, *, ceil_mode: bool) -> int:
    """Number of windows along an axis; with `ceil_mode` the last may begin inside the input or its near padding only."""
    room = extent + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= extent + padding else count
