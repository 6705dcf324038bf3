"""Operators that torch's own gradients bring into a trace and that have no ONNX form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgefl.errors import ModelError

aten = torch.ops.aten


def empty_permuted(size: Sequence[int], order: Sequence[int], dtype: torch.dtype = torch.float32, **_: object) -> Tensor:
    """Zeros: what an in-place operator overwrites next (the gradient of SiLU is written that way), in any order in memory."""
    del order
    return torch.zeros(list(size), dtype=dtype)


def upsample_nearest_backward(grad: Tensor, output: Sequence[int], into: Sequence[int], *scales: float | None) -> Tensor:
    """Of upsampling by whole factors: the sum over the values that each input became.

    Args:
        grad: `(n, c, *output)`.
        output: extents after upsampling.
        into: the input's shape.
        scales: given by the caller; the extents say it all.

    Raises:
        ModelError: an extent does not grow by a whole factor.
    """
    del scales
    if any(o % i for o, i in zip(output, into[2:], strict=True)):
        raise ModelError(
            "the gradient of this upsampling cannot be exported",
            expected="whole factors",
            found=f"{tuple(into[2:])} to {tuple(output)}",
            remedy="Upsample by a whole factor",
        )
    split = [n for o, i in zip(output, into[2:], strict=True) for n in (i, o // i)]
    return grad.reshape([*into[:2], *split]).sum(list(range(3, 2 + len(split), 2)))


REWRITTEN: Mapping[Any, Callable[..., Any]] = {
    aten.empty_permuted.default: empty_permuted,
    aten.upsample_nearest1d_backward.default: upsample_nearest_backward,
    aten.upsample_nearest2d_backward.default: upsample_nearest_backward,
}
"""For the table of decompositions with which a training step is traced."""
