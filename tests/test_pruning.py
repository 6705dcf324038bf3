"""A pruned model is a view of its parent: its weights, its outputs, what is stored of it, and what a fleet makes of it."""

import sys
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgefl.codec.weights import Precision
from edgefl.compress.axes import axes_from_index, decode_axes, encode_axes, index_from_axes
from edgefl.compress.budget import Candidate
from edgefl.compress.groups import Shares, shrunk
from edgefl.compress.sensitivity import Baseline
from edgefl.errors import ModelError
from edgefl.layout import Layout, Tensor, index_map
from edgefl.profile import Profile
from edgefl.recipe import Recipe
from edgefl.server.founding import create_fleet
from edgefl.server.variants import load_parent, load_variants
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.versions import get_version, variants

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  needs torch

from edgefl.examples import Examples  # noqa: E402  after the check
from edgefl.export.measuring import accuracy_in_torch  # noqa: E402  needs torch
from edgefl.export.models import ModelSource, load_factory  # noqa: E402  needs torch
from edgefl.export.pruning import Pruned, prunable_groups, prune, rank_channels  # noqa: E402  needs torch
from edgefl.export.tensors import layout_of, load_vector, vector_of  # noqa: E402  needs torch
from edgefl.server.cuts import Pruner, frozen_cuts, nested_cuts  # noqa: E402  needs torch
from edgefl.server.explained import Explanation  # noqa: E402  after the check
from edgefl.server.push import PushRequest, push  # noqa: E402  needs torch
from edgefl.server.sensing import offer  # noqa: E402  needs torch

MODELS = """
import torch
from torch import nn

class Residual(nn.Module):
    input_shape = (2, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = nn.functional.max_pool2d(self.depthwise(x).relu(), 2)
        return self.head(x.flatten(1))

class Joined(nn.Module):
    input_shape = (6,)

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 10), nn.Linear(6, 14), nn.Linear(24, 3)

    def forward(self, x):
        return self.head(torch.cat([self.left(x).tanh(), self.right(x).relu()], 1))

class Normed(nn.Sequential):
    input_shape = (2, 16)

def normed():
    first = nn.Conv1d(2, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten()
    return Normed(*first, nn.Linear(168, 24), nn.ReLU(), nn.Linear(24, 3))

class Tied(nn.Module):
    input_shape = (6,)

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.inner(self.inner(x).relu()).relu())
"""
NAMES = ("Residual", "Joined", "normed")


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models in the current directory."""
    (tmp_path / "boards.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "boards", raising=False)


def halves(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """Half of every group, by the norm of the weights."""
    groups = prunable_groups(source)
    order = rank_channels(source, vector_of(source.build()), groups, None)
    return {group.name: group.chosen(order[group.name], 0.5) for group in groups}


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_model_is_a_view_of_its_parent(name: str) -> None:
    """Its weights are the parent's at its index map, its layout is the predicted one, its axes survive being written down."""
    source = load_factory(f"boards:{name}")
    parent, groups = layout_of(source.build()), prunable_groups(source)
    assert groups
    kept = halves(source)
    pruned = prune(source, kept)
    assert pruned.layout.size < 0.6 * parent.size
    assert pruned.layout == layout_of(pruned.source.build())
    assert pruned.layout == shrunk(parent, groups, {group.name: 0.5 for group in groups})
    np.testing.assert_array_equal(vector_of(pruned.source.build(seed=5)), vector_of(source.build(seed=5))[pruned.index])
    data = encode_axes(parent, pruned.layout, pruned.axes)
    np.testing.assert_array_equal(index_from_axes(parent, pruned.layout, data), pruned.index)
    assert len(data) < pruned.layout.size


@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_the_same_without_channels_that_give_nothing(name: str) -> None:
    """Everything that reads the dropped channels has weight zero: the smaller model computes what the whole one does."""
    source = load_factory(f"boards:{name}")
    parent, vector = layout_of(source.build()), vector_of(source.build(seed=1))
    groups = {group.name: group for group in prunable_groups(source)}
    silent, reader = {"Residual": ("inner", "outer.weight"), "Joined": ("right", "head.weight"), "normed": ("4", "6.weight")}[
        name
    ]
    pruned = prune(source, {silent: groups[silent].chosen(tuple(range(groups[silent].size)), 0.5)})
    kept = np.zeros(parent.size, dtype=np.float32)
    kept[pruned.index] = 1
    parent.views(vector)[reader][parent.views(kept)[reader] == 0] = 0
    whole, part = source.build(), pruned.source.build()
    load_vector(whole, vector)
    load_vector(part, vector[pruned.index])
    x = torch.randn(5, *source.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(part.eval()(x), whole.eval()(x), atol=1e-5, rtol=1e-4)


def test_important_channels_stay() -> None:
    """By norm the channels with large weights, by the loss those that its gradient feels."""
    source = load_factory("boards:Joined")
    groups, vector = prunable_groups(source), vector_of(source.build())
    views = layout_of(source.build()).views(vector)
    views["left.weight"][3] *= 50
    assert rank_channels(source, vector, groups, None)["left"][0] == 3
    views["head.weight"][:, 10:] = 0
    views["head.weight"][:, 10 + 5] = 3
    rng = np.random.default_rng(0)
    examples = Examples(rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 3, 40))
    assert rank_channels(source, vector, groups, examples)["right"][0] == 5


def test_what_cannot_be_taken_apart_is_left_whole() -> None:
    """Outputs are no channels to prune, and a layer that is used twice on itself keeps its shape or is left alone."""
    source = load_factory("boards:Residual")
    assert "head" not in {group.name for group in prunable_groups(source)}
    tied = load_factory("boards:Tied")
    for group in prunable_groups(tied):
        module = prune(tied, {group.name: group.chosen(tuple(range(group.size)), 0.5)}).source.build()
        assert module(torch.zeros(2, 6)).shape == (2, 3)
    with pytest.raises(ModelError, match="no layer"):
        prune(source, {"nowhere": (0, 1)})


def test_damaged_axes_are_refused() -> None:
    """Bytes of another variant, bits beyond the end, or noise: an error, never another index map."""
    parent, child = Layout((Tensor("a", (9, 4)),)), Layout((Tensor("a", (3, 4)),))
    axes = {"a": (np.array([0, 5, 8]), np.arange(4))}
    data = encode_axes(parent, child, axes)
    assert [list(rows) for rows in decode_axes(parent, child, data)["a"]] == [[0, 5, 8], [0, 1, 2, 3]]
    np.testing.assert_array_equal(index_from_axes(parent, child, data), index_map(parent, child, axes))
    other = Layout((Tensor("a", (2, 4)),))
    wrong = [(other, data), *((child, bad) for bad in (data[:-1], b"", b"\xc1", b"\x91\x92\xc4\x01\x01\xc4\x00"))]
    for layout, bad in wrong:
        with pytest.raises(ModelError):
            index_from_axes(parent, layout, bad)
    with pytest.raises(ModelError, match="no part"):
        axes_from_index(parent, child, np.array([0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]))


def test_freezing_first_layers_saves_work_and_room() -> None:
    """The same values at the same places; fewer trained, fewer kept activations, a smaller footprint, never all layers."""
    source = load_factory("boards:normed")
    (whole,) = nested_cuts(source)
    frozen = frozen_cuts(whole)
    assert [cut.structure.name for cut in frozen] == ["w1f1", "w1f2", "w1f3"]
    costs = [Candidate(cut.structure, Precision.INT8, 0, batch=4).cost for cut in (whole, *frozen)]
    for more, less in pairwise(costs):
        assert less.storage < more.storage
        assert less.memory <= more.memory
        assert less.step <= more.step
    assert costs[-1].step < costs[0].step
    assert all(np.array_equal(cut.index, whole.index) and cut.structure.layout.trained for cut in frozen)


def board(name: str, kib: int) -> Profile:
    """A profile with this much room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=kib, memory_mb=2048,
        threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",), reason="",
    )  # fmt: skip


def trained(source: ModelSource, examples: Examples, path: Path) -> Path:
    """Weights that know the examples, in a file."""
    from safetensors.numpy import save_file

    module = source.build(seed=1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss: Callable[..., torch.Tensor] = nn.functional.cross_entropy
        loss(module(torch.from_numpy(examples.x)), torch.from_numpy(examples.y)).backward()
        optimizer.step()
    views = layout_of(module).views(vector_of(module))
    save_file({name: value.copy() for name, value in views.items()}, path)
    return path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A new fleet."""
    return create_fleet(tmp_path / "fleet", name="test")


@pytest.mark.slow
def test_a_model_without_widths_is_pushed_to_a_small_board_all_the_same(fleet: Fleet) -> None:
    """Uniform shares by norm, written down: a server that starts again finds the same index map, and says what it chose by."""
    request = PushRequest("boards", "boards:normed", batch=4)
    explained: list[Explanation] = []
    whole, part = push(fleet, request, (board("big", 9999), board("small", 40)), now=1.0, on_planned=explained.append)
    assert whole.variant == "w1-fp32"
    assert part.variant.startswith("p")
    assert part.footprint <= part.budget
    assert "no held-out examples" in explained[1].basis
    assert "storage binds" in explained[1].reason
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "boards", 1)
        view = load_variants(database, version, BlobStore(fleet.blobs))[part.variant]
        record = {record.profile: record for record in variants(database, "boards", 1)}["small"]
    blobs = BlobStore(fleet.blobs)
    parent = load_parent(blobs, version.weights)
    assert blobs.get(record.manifest.file("weights").sha256) == view.weights(parent)
    assert record.axes is not None
    assert len(np.unique(view.index)) == view.layout.size == part.parameters < whole.parameters


@pytest.mark.slow
def test_pruning_by_examples_keeps_what_a_narrower_width_would_lose(fleet: Fleet, tmp_path: Path) -> None:
    """A trained model with held-out examples: the choice is the best that fits by prediction, and measures close to it."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    pattern = np.sign(np.arange(32).reshape(2, 16) % 5 - 2)
    x = (rng.standard_normal((300, 2, 16)) + 0.7 * y[:, None, None] * pattern).astype(np.float32)
    examples = Examples(x, y)
    weights = trained(load_factory("boards:normed"), examples, tmp_path / "w.safetensors")
    explained: list[Explanation] = []
    request = PushRequest("boards", "boards:normed", batch=4, weights=weights, holdout=examples)
    whole, part = push(fleet, request, (board("big", 9999), board("small", 40)), now=1.0, on_planned=explained.append)
    assert whole.accuracy is not None
    assert part.accuracy is not None
    assert part.predicted is not None
    assert whole.accuracy > 0.9
    assert abs(part.accuracy - part.predicted) < 0.05
    (row,) = [row for row in explained[1].frontier if row.chosen]
    assert (row.variant, row.measured) == (part.variant, part.accuracy)
    fitting = [row for row in explained[1].frontier if not row.exceeds]
    assert max(row.predicted or 0.0 for row in fitting) == part.predicted
    better = [row for row in explained[1].frontier if (row.predicted or 0.0) > part.predicted]
    assert all(row.exceeds for row in better)


@pytest.mark.parametrize(
    ("loss", "y", "share"),
    [
        ("cross-entropy", [0, 1, 1], 2 / 3),
        ("masked-cross-entropy", [0, 1, 1], 2 / 3),
        ("bce", [[1, 0, 0], [0, 1, 1], [0, 0, 1]], 6 / 9),
    ],
)
def test_right_answers_are_counted_as_the_boards_count_them(loss, y, share):
    """One of several classes is right or wrong; of several independent answers each counts."""
    x = np.array([[2, -1, -1], [-1, 3, -1], [1, -1, -1]], dtype=np.float32)
    targets = np.array(y, dtype=np.int64 if np.ndim(y) == 1 else np.float32)
    module = nn.Sequential(nn.Identity())
    assert accuracy_in_torch(module, Examples(x, targets), Recipe(loss)) == pytest.approx(share)


def test_a_level_that_cannot_be_cut_costs_everything_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that can be halved but not quartered: the model is measured all the same, and no cut goes there."""
    source = load_factory("boards:Joined")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    module = source.build(seed=1)
    with torch.no_grad():
        examples = Examples(x, module(torch.from_numpy(x)).argmax(1).numpy())
    real, refused = Pruner.pruned, []

    def pruned(self: Pruner, shares: Shares) -> Pruned:
        if 0.0 < shares.get("left", 1.0) <= 0.4:
            refused.append(shares)
            raise ModelError("it cannot be cut like that")
        return real(self, shares)

    monkeypatch.setattr(Pruner, "pruned", pruned)
    said: list[str] = []
    offered = offer(source, vector_of(module), examples, said.append)
    assert refused
    assert offered.baseline is not None
    assert len(offered.cuts) > 5
    assert offered.predicted(offered.cuts["w1"].structure, Precision.FP32) == offered.baseline.accuracy == 1.0
    sizes = [cut.structure.layout.tensors[0].shape[0] for cut in offered.cuts.values()]
    assert min(sizes) > 4


def test_of_two_cuts_that_lose_as_little_the_one_that_answers_alike_costs_less() -> None:
    """Equal accuracy, other answers: luck on a few examples is not taken for skill."""
    baseline = Baseline(0.9, 0.1, 1000)
    same, lucky = baseline.cost(0.9, 0.0), baseline.cost(0.9, 0.2)
    assert same == 0.0
    assert lucky == pytest.approx((0.2 / 1000) ** 0.5)
    assert baseline.cost(0.8, 0.1) == pytest.approx(0.1 + 0.01)
