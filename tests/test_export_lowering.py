"""The rewritten gradients against torch's own, over shapes, strides, paddings, dilations and groups."""

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  needs torch
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

from edgefl.engine.runtime import onnxruntime  # noqa: E402
from edgefl.errors import ModelError  # noqa: E402
from edgefl.export import convolution, depthwise, lowering, normalisation, operators, pooling  # noqa: E402

aten = torch.ops.aten
small = st.integers(1, 3)
pair = st.tuples(small, small)
EVERYTHING, NOTHING = 1 << 60, -1


def tensor(*shape):
    """Values that differ pairwise, so that no maximum is shared."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def forms(**limits):
    """Set the limits between the forms of a gradient, by which a test chooses one."""
    stack = ExitStack()
    for name, value in limits.items():
        stack.enter_context(patch.object(depthwise if name == "DENSE" else convolution, name, value))
    return stack


convolutions = {
    "kernel": pair,
    "stride": pair,
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "extent": st.tuples(st.integers(4, 9), st.integers(4, 9)),
}


@given(
    rank=st.integers(1, 2),
    groups=st.sampled_from([1, 1, 2, 4]),
    per_group=pair,
    unfold=st.sampled_from([EVERYTHING, NOTHING]),
    few=st.sampled_from([EVERYTHING, NOTHING]),
    **convolutions,
)
@settings(max_examples=80, deadline=None)
def test_convolution_gradients_are_torchs(  # noqa: PLR0917  hypothesis passes them by name
    rank, groups, per_group, unfold, few, kernel, stride, padding, dilation, extent
):
    """By input, weight and bias, for any convolution of one or two dimensions, in all forms."""
    kernel, stride, padding, dilation, extent = (list(v[:rank]) for v in (kernel, stride, padding, dilation, extent))
    assume(all(e + 2 * p >= d * (k - 1) + 1 for e, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    x = tensor(2, groups * per_group[0], *extent)
    weight = tensor(groups * per_group[1], per_group[0], *kernel)
    with forms(UNFOLD_ROWS=unfold, FEW_CHANNELS=few, MANY_TAPS=NOTHING):
        check_convolution(x, weight, stride, padding, dilation, groups)


@given(channels=st.integers(2, 4), dense=st.sampled_from([EVERYTHING, NOTHING]), **convolutions)
@settings(max_examples=80, deadline=None)
def test_depthwise_convolutions_are_torchs(channels, dense, kernel, stride, padding, dilation, extent):
    """Value and gradients of one kernel for each channel, by matrices and tap by tap."""
    assume(all(e + 2 * p >= d * (k - 1) + 1 for e, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    x, weight = tensor(3, channels, *extent), tensor(channels, 1, *kernel)
    with forms(DENSE=dense):
        check_convolution(x, weight, list(stride), list(padding), list(dilation), channels)


def check_convolution(x, weight, stride, padding, dilation, groups):
    """Compare value, where it is rewritten, and gradients with torch's."""
    bias = tensor(len(weight))
    settings = (stride, padding, dilation)
    y = (functional.conv1d if x.dim() == 3 else functional.conv2d)(x, weight, bias, *settings, groups)
    value = convolution.convolution_forward(x, weight, bias, *settings, False, [0] * (x.dim() - 2), groups)
    if value is not NotImplemented:
        torch.testing.assert_close(value, y, check_dtype=False)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    found = convolution.convolution_backward(
        grad, x.detach(), weight.detach(), [len(bias)], *settings, False, [0] * (x.dim() - 2), groups, [True] * 3
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [False, True])
def test_matrices_are_for_depthwise_convolutions_on_small_planes(value):
    """Others are left to ONNX Runtime's own convolution."""
    x, weight = torch.zeros(32, 4, 7, 7), torch.zeros(4, 1, 3, 3)
    arguments = ([1, 1], [1, 1], [1, 1], False, [0, 0])
    if value:
        assert convolution.convolution_forward(x, weight, None, *arguments, 4).shape == x.shape
        return
    assert convolution.convolution_forward(torch.zeros(32, 4, 28, 28), weight, None, *arguments, 4) is NotImplemented
    assert convolution.convolution_forward(x[:1], weight, None, *arguments, 4) is NotImplemented
    assert convolution.convolution_forward(x, torch.zeros(4, 2, 3, 3), None, *arguments, 2) is NotImplemented


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
    value, index = pooling.max_pool(x.detach(), kernel, stride, padding, dilation, ceil_mode)
    found = pooling.max_pool_backward(grad, x.detach(), kernel, stride, padding, dilation, ceil_mode, index)
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(x.detach().flatten()[index.flatten()], y.flatten())
    torch.testing.assert_close(found, expected)


class Operator(nn.Module):
    """One of our operators as a module."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *tensors):
        """The operator's value."""
        return self.call(*tensors)


def in_onnx(call, *tensors):
    """What an operator's ONNX form computes on the real runtime, and the kinds of its nodes."""
    model = torch.onnx.export(
        Operator(call).eval(),
        tensors,
        dynamo=True,
        opset_version=18,
        verbose=False,
        custom_translation_table=dict(operators.TRANSLATIONS),
    ).model_proto
    model.ir_version = 9
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {given.name: value.numpy() for given, value in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)], {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("extent", "kernel", "operator"),
    [
        ((6, 8), (2, 2), "Max"),
        ((6, 9), (2, 3), "Max"),
        ((1, 8), (1, 2), "Max"),
        ((6, 4), (3, 1), "Max"),
        ((7, 8), (2, 2), "MaxPool"),
    ],
)
def test_pooling_in_onnx_gives_torchs_values_and_indices(extent, kernel, operator):
    """Also where several members of a window are the largest: the first one counts. Windows that tile need no MaxPool."""
    x = torch.randint(0, 3, (2, 3, *extent), generator=torch.Generator().manual_seed(0)).float()
    arguments = (list(kernel), list(kernel), [0, 0], [1, 1], False)
    expected = torch.ops.edgefl.max_pool(x, *arguments)
    found, kinds = in_onnx(lambda x: torch.ops.edgefl.max_pool(x, *arguments), x)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert kinds & {"Max", "MaxPool"} == {operator}


def test_our_operators_in_onnx_are_what_they_are_in_torch():
    """An affine map of rows, and the mask of positive values: exact to the last bit where torch does not fuse."""
    x = torch.from_numpy(np.array([[-np.inf, -1.0, -1e-38, -0.0, 0.0, 2e-38, 1e-30, 1.0, 3e38, np.inf]], dtype=np.float32))
    ((mask,), _) = in_onnx(torch.ops.edgefl.positive, x)
    assert torch.equal(mask, (x > 0).float())
    rows, scale, shift = (tensor(*shape).detach().float() for shape in ((5, 7), (5,), (5,)))
    ((value,), _) = in_onnx(torch.ops.edgefl.affine, rows, scale, shift)
    torch.testing.assert_close(value, rows * scale[:, None] + shift[:, None])


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
    found = pooling.average_pool_backward(grad, x.detach(), kernel, stride, padding, ceil_mode, include, divisor)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("out", [(3, 2), (1, 1)])
def test_adaptive_pooling_is_exact_where_it_divides_and_refused_where_not(out):
    """An output size that divides the input's is ordinary pooling; another is said to be impossible."""
    x = tensor(2, 3, 6, 8).float().detach().requires_grad_()
    y = functional.adaptive_avg_pool2d(x, out)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(pooling.adaptive_average_pool_backward(grad, x.detach()), expected)
    with pytest.raises(ModelError, match="output size that divides"):
        pooling.adaptive_average_pool_backward(torch.ones(2, 3, 4, 3), x.detach())


def test_a_kernel_of_too_many_taps_is_refused():
    """A graph of thousands of nodes is no use on a board."""
    x, weight = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 12, 12)
    with pytest.raises(ModelError, match="12 x 12"):
        convolution.convolution_backward(
            torch.zeros(1, 1, 9, 9), x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )


@given(n=small, groups=small, per_group=small, plane=st.integers(2, 6), affine=st.booleans())
@settings(max_examples=40, deadline=None)
def test_group_normalisation_is_torchs(n, groups, per_group, plane, affine):
    """Value and all gradients, with and without weight and bias, also far from zero mean."""
    channels = groups * per_group
    x = (tensor(n, channels, plane) + 3.0).float().detach().requires_grad_()
    weight, bias = (tensor(channels + i).float()[:channels].detach().requires_grad_() if affine else None for i in (0, 1))
    y = functional.group_norm(x, groups, weight, bias)
    sizes = (n, channels, plane, groups)
    value, mean, rstd = normalisation.native_group_norm(x.detach(), weight, bias, *sizes, 1e-5)
    torch.testing.assert_close(value, y)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(y, (x, weight, bias) if affine else (x,), grad)
    found = normalisation.native_group_norm_backward(grad, x.detach(), mean, rstd, weight, *sizes, [True, affine, affine])
    for a, b in zip([v for v in found if v is not None], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.5, -1.0])
def test_the_gradient_of_a_threshold_passes_above_it_alone(threshold):
    """At the threshold itself nothing passes, as in torch."""
    x = torch.tensor([-2.0, threshold, threshold + 1e-3, 7.0])
    assert lowering.threshold_backward(torch.full((4,), 3.0), x, threshold).tolist() == [
        3.0 if value > threshold else 0.0 for value in x.tolist()
    ]


@pytest.mark.parametrize(
    ("shape", "to", "rewritten"),
    [
        ((2, 3, 1, 1), (2, 3, 4, 5), True),
        ((2, 3, 1), (2, 3, 6), True),
        ((1, 3, 1, 1), (2, 3, 4, 5), False),
        ((3, 1), (3, 4), False),
    ],
)
def test_a_mean_is_spread_over_its_plane(shape, to, rewritten):
    """One value for each plane goes through a product with ones; other expansions are left alone."""
    x = tensor(*shape).float()
    found = lowering.expand(x, list(to))
    assert (found is not NotImplemented) == rewritten
    if rewritten:
        assert torch.equal(found, x.expand(to))


def test_a_relus_gradient_is_taken_on_the_windows():
    """Behind ReLU and max pooling no mask has the size of what was pooled, and the gradient stays the same."""
    x = tensor(2, 3, 6, 6).float().detach()
    grad = tensor(2, 3, 3, 3).float().detach()

    def step(x, grad):
        y, pull = torch.func.vjp(lambda x: functional.max_pool2d(x.relu(), 2), x)
        return pull(grad)[0], y

    traced = make_fx(step, decomposition_table=dict(lowering.table()))(x, grad)
    expected = traced(x, grad)
    lowering.mask_before_unpooling(traced.graph)
    traced.recompile()
    for a, b in zip(traced(x, grad), expected, strict=True):
        assert torch.equal(a, b)
    (mask,) = traced.graph.find_nodes(op="call_function", target=torch.ops.edgefl.positive.default)
    assert mask.meta.get("val", traced(x, grad)[1]).shape == (2, 3, 3, 3)
    assert len(traced.graph.find_nodes(op="call_function", target=aten.mul.Tensor)) == 1
    leaf = torch.tensor(x.numpy(), requires_grad=True)
    functional.max_pool2d(leaf.relu(), 2).backward(grad)
    torch.testing.assert_close(expected[0], leaf.grad)
