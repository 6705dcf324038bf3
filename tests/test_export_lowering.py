"""The rewritten gradients against torch's own, over shapes, strides, paddings, dilations and groups."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402  needs torch

from edgefl.errors import ModelError  # noqa: E402
from edgefl.export import lowering  # noqa: E402

small = st.integers(1, 3)


def tensor(*shape):
    """Values that differ pairwise, so that no maximum is shared."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@given(
    rank=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.tuples(small, small),
    kernel=st.tuples(small, small),
    stride=st.tuples(small, small),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    extent=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    unfold=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_convolution_gradients_are_torchs(  # noqa: PLR0917  hypothesis passes them by name
    rank, groups, per_group, kernel, stride, padding, dilation, extent, unfold
):
    """By input, weight and bias, for any convolution of one or two dimensions, in both forms of the weight gradient."""
    kernel, stride, padding, dilation, extent = (list(v[:rank]) for v in (kernel, stride, padding, dilation, extent))
    assume(all(e + 2 * p >= d * (k - 1) + 1 for e, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    x = tensor(2, groups * per_group[0], *extent)
    weight = tensor(groups * per_group[1], per_group[0], *kernel)
    bias = tensor(len(weight))
    convolve = functional.conv1d if rank == 1 else functional.conv2d
    y = convolve(x, weight, bias, stride, padding, dilation, groups)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    rows = lowering.UNFOLD_ROWS
    lowering.UNFOLD_ROWS = rows if unfold else 0
    try:
        found = lowering.convolution_backward(
            grad, x.detach(), weight.detach(), [len(bias)], stride, padding, dilation, False, [0] * rank, groups, [True] * 3
        )
    finally:
        lowering.UNFOLD_ROWS = rows
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


pool_arguments = {
    "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "stride": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
    "extent": st.tuples(st.integers(4, 9), st.integers(4, 9)),
    "ceil_mode": st.booleans(),
}


@given(**pool_arguments, dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)))
@settings(max_examples=60, deadline=None)
def test_max_pooling_gradients_are_torchs(kernel, stride, padding, extent, ceil_mode, dilation):
    """Windows apart, touching, overlapping, padded, cut off at the end: values and gradients agree."""
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    assume(all(e + 2 * p >= d * (k - 1) + 1 for e, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    x = tensor(2, 3, *extent).float().detach().requires_grad_()
    y = functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(y, x, grad)
    value, index = lowering.max_pool(x.detach(), kernel, stride, padding, dilation, ceil_mode)
    found = lowering.max_pool_backward(grad, x.detach(), kernel, stride, padding, dilation, ceil_mode, index)
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(x.detach().flatten()[index.flatten()], y.flatten())
    torch.testing.assert_close(found, expected)


@given(**pool_arguments, include=st.booleans(), divisor=st.sampled_from([None, 1, 5]))
@settings(max_examples=60, deadline=None)
def test_average_pooling_gradients_are_torchs(kernel, stride, padding, extent, ceil_mode, include, divisor):
    """With and without padding in the mean, a fixed divisor, and windows that reach beyond the end."""
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    assume(all(e + 2 * p >= k for e, p, k in zip(extent, padding, kernel, strict=True)))
    x = tensor(2, 3, *extent).float().detach().requires_grad_()
    y = functional.avg_pool2d(x, kernel, stride, padding, ceil_mode, include, divisor)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(y, x, grad)
    found = lowering.average_pool_backward(grad, x.detach(), kernel, stride, padding, ceil_mode, include, divisor)
    torch.testing.assert_close(found, expected)


def test_adaptive_pooling_is_exact_where_it_divides_and_refused_where_not():
    """An output size that divides the input's is ordinary pooling; another is said to be impossible."""
    x = tensor(2, 3, 6, 8)
    y = functional.adaptive_avg_pool2d(x, (3, 2))
    grad = torch.ones_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(lowering.adaptive_average_pool_backward(grad, x.detach()), expected)
    with pytest.raises(ModelError, match="output size that divides"):
        lowering.adaptive_average_pool_backward(torch.ones(2, 3, 4, 3), x.detach())


def test_a_kernel_of_too_many_taps_is_refused():
    """A graph of thousands of nodes is no use on a board."""
    x, weight = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 12, 12)
    with pytest.raises(ModelError, match="12 x 12"):
        lowering.convolution_backward(
            torch.zeros(1, 1, 9, 9), x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )
