"""Retraining towards small files: the laws of each technique, on models of a few hundred weights."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from edgefl.codec.weights import Precision, decode_weights, encode_weights, weights_length
from edgefl.errors import DataError, ModelError
from edgefl.examples import Examples, unlabelled
from edgefl.export.tensors import layout_of, outputs_of, vector_of
from edgefl.retrain.batches import Augmentation, batches
from edgefl.retrain.centroids import Shared, Sharing
from edgefl.retrain.compression import Compression, compressed
from edgefl.retrain.flat import FlatModule
from edgefl.retrain.objective import Distillation, Labels, Outputs
from edgefl.retrain.pruning import Pruning, is_prunable, kept
from edgefl.retrain.training import Pruned, Schedule, train


class Net(nn.Module):
    """Two layers and a normalisation, on images of 6x6."""

    input_shape = (1, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(36, 24), nn.BatchNorm1d(24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(n, 3)`."""
        logits: torch.Tensor = self.fc2(self.norm(self.fc1(x.flatten(1))).relu())
        return logits


def images(count: int, seed: int) -> Examples:
    """Images whose class is the third in which a bright row lies."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = 0.5 * rng.standard_normal((count, 1, 6, 6)).astype(np.float32)
    x[np.arange(count), 0, 2 * y + rng.integers(0, 2, count)] += 1.0
    return Examples(x, y)


def net(seed: int = 0) -> nn.Module:
    """A fresh one."""
    torch.manual_seed(seed)
    return Net()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small sums are slower on two, and have no fixed order there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def original() -> nn.Module:
    """A trained one."""
    flat = FlatModule(net())
    free = Pruned(flat, None)
    plain = Augmentation()
    train(flat, images(600, 1), Labels(), Schedule(150, 32, 5e-3), constraint=free, original=None, augmentation=plain, seed=0)
    return flat.module


def accuracy(vector: np.ndarray, examples: Examples) -> float:
    """Of a model with these weights."""
    from edgefl.export.tensors import load_vector

    module = net().eval()
    load_vector(module, vector.astype(np.float32))
    with torch.no_grad():
        return float((outputs_of(module, torch.from_numpy(examples.x)).argmax(1).numpy() == examples.y).mean())


LAYOUT = layout_of(net())
TEST = images(1000, 2)
SHORT = Compression(Pruning(0.8), Schedule(20, 32), Sharing(0.01, 15), Schedule(10, 32))
QUICK = Compression(Pruning(0.8), Schedule(120, 32, 4e-3), Sharing(0.01, 15), Schedule(40, 32, 1e-3))


def test_a_flat_module_is_its_vector() -> None:
    """Writing to the vector writes to the module; gradients arrive in the vector; state is not connected."""
    flat = FlatModule(net())
    flat.values[:] = 0.25
    assert all((p == 0.25).all() for p in flat.module.parameters())
    flat.backward(flat.module(torch.ones(4, 1, 6, 6)).sum())
    parts = [value for tensor, place in flat.layout.slices() if tensor.role == "trained" for value in flat.gradients[place]]
    wanted = torch.cat([p.grad.reshape(-1) for p in flat.module.parameters()])
    torch.testing.assert_close(torch.stack(parts), wanted)
    assert (flat.module.norm.running_mean != 0.25).all()


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_pruning_removes_exactly_the_share_and_the_smallest(scope: str) -> None:
    """In every scope: as many as asked for; in each tensor no weight that stays is smaller than one that goes; biases stay."""
    flat = vector_of(net())
    left = kept(flat, LAYOUT, 0.7, scope)
    count = sum(t.size for t in LAYOUT.tensors if is_prunable(t))
    assert abs(int((~left).sum()) - 0.7 * count) <= 2
    for tensor, place in LAYOUT.slices():
        if not is_prunable(tensor):
            assert left[place].all()
        else:
            magnitudes = np.abs(flat[place])
            assert left[place].any()
            assert magnitudes[~left[place]].max() <= magnitudes[left[place]].min()


def test_lamp_leaves_no_tensor_empty_where_global_does() -> None:
    """A tensor of small weights would be gone under one global threshold."""
    flat = vector_of(net())
    places = {tensor.name: place for tensor, place in LAYOUT.slices()}
    flat[places["fc2.weight"]] *= 1e-3
    assert not kept(flat, LAYOUT, 0.9, "global")[places["fc2.weight"]].any()
    assert kept(flat, LAYOUT, 0.9, "lamp")[places["fc2.weight"]].any()


def test_what_is_zero_is_pruned_first() -> None:
    """So that a pruned weight never comes back when more is pruned."""
    flat = vector_of(net())
    zero = ~kept(flat, LAYOUT, 0.5, "lamp")
    flat[zero] = 0
    assert not kept(flat, LAYOUT, 0.8, "lamp")[zero].any()


def test_the_pruning_schedule_rises_to_the_end_and_stays() -> None:
    """Nothing at first, ever more but ever more slowly, all of it from `until` on."""
    pruning = Pruning(0.9, until=0.5, times=10)
    shares = [pruning.share(p) for p in np.linspace(0, 1, 101)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[50:] == [pytest.approx(0.9)] * 51
    assert shares[25] - shares[0] > shares[50] - shares[25]


def test_gradients_of_weights_that_share_a_value_are_added() -> None:
    """A centroid's gradient is the sum over its weights; pruned weights have no part in it and stay zero."""
    flat = FlatModule(net())
    flat.values[torch.from_numpy(np.flatnonzero(~kept(flat.values.numpy(), LAYOUT, 0.5, "layer")))] = 0
    shared = Shared(flat, Sharing(0.05, 7))
    before = flat.values.clone()
    flat.backward(flat.module(torch.ones(4, 1, 6, 6)).square().sum())
    shared.pull()
    place = next(place for tensor, place in LAYOUT.slices() if tensor.name == "fc1.weight")
    values, gradients = before[place], flat.gradients[place]
    for value in values[values != 0].unique():
        wanted = gradients[values == value].sum()
        found = shared.moved.grad[(shared.moved == value).nonzero()[:, 0]]
        assert any(torch.isclose(g, wanted, rtol=1e-4, atol=1e-5) for g in found)
    shared.moved -= 0.01
    shared.push(1.0)
    assert ((flat.values == 0) == (before == 0))[place].all()


@pytest.mark.parametrize(
    ("objective", "examples"),
    [
        (Labels(), images(300, 3)),
        (Outputs(), unlabelled(images(300, 3).x)),
        (Distillation(3.0), unlabelled(images(300, 3).x)),
        (Distillation(3.0, labels=0.3), images(300, 3)),
    ],
)
def test_every_objective_heals_what_compression_breaks(objective, examples) -> None:
    """With labels or without, on other examples than the original's: better than not retrained, and near the original."""
    settings = Compression(Pruning(0.9), QUICK.pruned, QUICK.sharing, QUICK.shared, objective)
    healed, broken = compressed(original(), examples, settings), compressed(original(), None, settings)
    assert (healed[broken == 0] == 0).mean() > 0.8
    best = accuracy(vector_of(original()), TEST)
    assert accuracy(healed, TEST) > best - 0.08
    assert accuracy(healed, TEST) > accuracy(broken, TEST) + 0.05


def test_the_file_of_a_retrained_model_loses_nothing() -> None:
    """Its centroids are in the file as they are, and pruned weights are zero after the trip."""
    vector = compressed(original(), unlabelled(images(200, 3).x), SHORT)
    data = encode_weights(vector, LAYOUT, Precision.CODEBOOK)
    np.testing.assert_array_equal(decode_weights(data, LAYOUT), vector)
    assert len(data) < weights_length(LAYOUT, Precision.FP32) / 5


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.TERNARY])
def test_weights_are_trained_as_a_file_rounds_them(precision: Precision) -> None:
    """Exact ones move behind them: as good as rounded afterwards or better, nothing lost in the file, what was pruned is zero."""

    def settings(rounding: Precision | None) -> Compression:
        return Compression(Pruning(0.6), QUICK.pruned, None, Schedule(120, 32, 2e-3), rounding=rounding)

    examples = unlabelled(images(300, 3).x)
    trained, exact = (compressed(original(), examples, settings(one)) for one in (precision, None))
    data, after = (encode_weights(one, LAYOUT, precision) for one in (trained, exact))
    np.testing.assert_array_equal(decode_weights(data, LAYOUT), trained)
    assert (trained[exact == 0] == 0).all()
    assert accuracy(trained, TEST) > accuracy(vector_of(original()), TEST) - 0.1
    assert accuracy(trained, TEST) >= accuracy(decode_weights(after, LAYOUT), TEST) - 0.01


def test_equal_seeds_give_equal_weights_and_the_original_is_left_alone() -> None:
    """Two runs agree to the last bit; another seed does not; the module that was given is as it was."""
    before = vector_of(original())
    settings = Compression(QUICK.pruning, Schedule(30, 16), QUICK.sharing, Schedule(10, 16), augmentation=Augmentation(1, 0.1))
    one, two, other = (compressed(original(), unlabelled(images(100, 3).x), settings, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    np.testing.assert_array_equal(vector_of(original()), before)


def test_each_stage_can_be_switched_off() -> None:
    """Without pruning and sharing, and without steps, the weights are what they were."""
    nothing = Compression(None, Schedule(0), None, Schedule(0))
    np.testing.assert_array_equal(compressed(original(), images(10, 0), nothing), vector_of(original()))
    only_shared = compressed(original(), None, Compression(None, Schedule(0), Sharing(0.01, 7), Schedule(0)))
    place = next(place for tensor, place in LAYOUT.slices() if tensor.name == "fc1.weight")
    assert len(np.unique(only_shared[place])) <= 8


def test_what_is_frozen_is_neither_pruned_nor_shared() -> None:
    """Tensors that are not trained keep their values."""
    module = net()
    module.fc1.weight.requires_grad_(False)
    vector = compressed(module, None, QUICK)
    place = next(place for tensor, place in layout_of(module).slices() if tensor.name == "fc1.weight")
    np.testing.assert_array_equal(vector[place], vector_of(module)[place])


def test_batches_are_whole_passes_and_augmented_as_asked() -> None:
    """Each example comes once in a pass; a shift moves an image without changing what is left of it; noise has its deviation."""
    examples = images(20, 4)
    rng = np.random.default_rng(0)
    rows = [x for x, _ in batches(examples, 5, 4, Augmentation(), rng)]
    assert sorted(float(x.sum()) for batch in rows for x in batch) == pytest.approx(sorted(float(x.sum()) for x in examples.x))
    image = np.zeros((50, 1, 6, 6), np.float32)
    image[:, 0, 3, 3] = 1
    moved = Augmentation(shift=2).applied(image, rng)
    assert (moved.sum(axis=(1, 2, 3)) == 1).all()
    assert {tuple(int(n) for n in place[2:]) for place in np.argwhere(moved)} <= {
        (r, c) for r in range(1, 6) for c in range(1, 6)
    }
    assert len({tuple(place[2:]) for place in np.argwhere(moved)}) > 10
    noisy = Augmentation(noise=0.3).applied(np.zeros((400, 6), np.float32), rng)
    assert noisy.std() == pytest.approx(0.3, rel=0.1)


def test_what_cannot_be_is_refused() -> None:
    """Numbers out of range, labels that are not there, shifts of what is no image."""
    for wrong in (
        lambda: Pruning(1.0),
        lambda: Pruning(0.5, until=0.0),
        lambda: Sharing(most=64),
        lambda: Sharing(tolerance=-1.0),
        lambda: Schedule(-1),
        lambda: Schedule(5, rate=0.0),
        lambda: Distillation(0.0),
        lambda: Compression(rounding=Precision.TERNARY),
        lambda: Compression(sharing=None, rounding=Precision.INT8),
    ):
        with pytest.raises(ModelError):
            wrong()
    with pytest.raises(DataError, match="labels"):
        compressed(original(), unlabelled(images(10, 0).x), Compression(pruned=Schedule(2), objective=Labels()))
    with pytest.raises(DataError, match="shift"):
        Augmentation(shift=1).applied(np.zeros((2, 9), np.float32), np.random.default_rng(0))
