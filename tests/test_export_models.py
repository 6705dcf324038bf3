"""Model sources: what a factory may be, and the words for each way in which it is wrong."""

import functools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  needs torch

from edgefl.codec.marks import has_mark  # noqa: E402
from edgefl.errors import ModelError  # noqa: E402
from edgefl.export.models import load_factory  # noqa: E402
from edgefl.export.tensors import layout_of, load_vector, vector_of  # noqa: E402
from edgefl.export.weights import load_weights  # noqa: E402
from edgefl.layout import nested_index  # noqa: E402
from edgefl.recipe import Recipe  # noqa: E402

BUILT_IN = {"mnist-2nn": 199_210, "mnist-cnn": 1_663_370, "har-cnn1d": 48_518}

FACTORIES = """
import torch
from torch import nn

class Shaped(nn.Sequential):
    input_shape = (4,)

def good(width):
    hidden = max(1, round(8 * width))
    return Shaped(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))

def fixed():
    return Shaped(nn.Linear(4, 3))

def raises(width):
    raise RuntimeError("no such file: embeddings.bin")

def wants_width_and_raises_type_error(width):
    return len(3)

def returns_number(width):
    return 7

def shapeless(width):
    return nn.Linear(4, 3)

def wrong_shape(width):
    module = Shaped(nn.Linear(4, 3))
    module.input_shape = (5,)
    return module

def normalised(width):
    return Shaped(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def frozen(width):
    module = Shaped(nn.Linear(4, 3))
    module.requires_grad_(False)
    return module

class Counting(Shaped):
    def __init__(self, width):
        super().__init__(nn.Linear(4, 3))
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        return super().forward(x)

def double(width):
    return Shaped(nn.Linear(4, 3)).double()

def sequence(width):
    return Shaped(nn.Unflatten(1, (2, 2)))

def scales_output(width):
    return Shaped(nn.Linear(4, max(2, round(8 * width))))

def other_layers(width):
    return Shaped(nn.Linear(4, 3)) if width < 1 else Shaped(nn.Linear(4, 4), nn.Linear(4, 3))

def empty(width):
    return Shaped(nn.Flatten())

class Reserved(nn.Module):
    input_shape = (4,)
    def __init__(self, width):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, 4))
    def forward(self, x):
        return x @ self.w.T

module = fixed()
constant = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of factories in the current directory."""
    (tmp_path / "their_models.py").write_text(FACTORIES)
    (tmp_path / "broken_models.py").write_text("raise ValueError('no licence')")
    (tmp_path / "needy_models.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    for name in ("their_models", "broken_models", "needy_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@functools.cache
def built_in(name):
    """The source of a built-in model, made once."""
    return load_factory(name)


@pytest.mark.parametrize(("name", "size"), BUILT_IN.items())
def test_built_in_models_have_the_sizes_of_the_literature(name, size):
    """The full models have exactly the parameters that they are known for."""
    assert layout_of(built_in(name).build()).size == size


@given(st.sampled_from(list(BUILT_IN)), st.floats(0.02, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_narrower_built_in_model_is_a_view_of_the_full_one(name, width):
    """Every coordinate of a narrower model is a distinct coordinate of the full one."""
    source = built_in(name)
    parent, child = layout_of(source.build()), layout_of(source.build(width))
    index = nested_index(parent, child)
    assert len(set(index.tolist())) == child.size <= parent.size


def test_group_normalisation_of_a_narrower_model_sees_the_same_groups():
    """With the leading corner of the full weights, the narrower model's hidden channels equal the full model's first ones."""
    source = built_in("har-cnn1d")
    full, half = source.build(1.0, seed=3), source.build(0.5)
    load_vector(half, vector_of(full)[nested_index(layout_of(full), layout_of(half))])
    x = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0))
    narrow = half.norm1(half.conv1(x))
    torch.testing.assert_close(narrow, full.norm1(full.conv1(x))[:, : narrow.shape[1]])


def test_equal_seeds_give_equal_weights_and_leave_torch_alone():
    """Building is reproducible and does not disturb the process's own random numbers."""
    source = built_in("mnist-2nn")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (vector_of(source.build(0.1, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.usefixtures("factories")
def test_a_factory_by_name_is_found_in_the_current_directory():
    """`module:factory` works from where the operator stands, and the path is left as it was."""
    path = list(sys.path)
    source = load_factory("their_models:good")
    assert (source.input_shape, source.classes, source.scalable) == ((4,), 3, True)
    assert layout_of(source.build(0.5)).size == 4 * 4 + 4 + 4 * 3 + 3
    assert sys.path == path


@pytest.mark.usefixtures("factories")
def test_a_factory_without_width_has_width_one_only():
    """A factory that takes no argument is used as it is, and asked for another width it says why not."""
    source = load_factory("their_models:fixed")
    assert not source.scalable
    assert layout_of(source.build(1.0)).size == 15
    with pytest.raises(ModelError, match="takes no width"):
        source.build(0.5)


@pytest.mark.parametrize("width", [0.0, -1.0, 1.5, float("nan")])
def test_a_width_out_of_range_is_refused(width):
    """Widths lie in (0, 1]."""
    with pytest.raises(ModelError, match="cannot have this width"):
        built_in("mnist-2nn").build(width)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist-3nn", "no built-in model is called"),
        ("their_models", "no built-in model is called"),
        (":good", "no built-in model is called"),
        ("no_such_module:good", "there is no module 'no_such_module'"),
        ("broken_models:good", "cannot be imported.*no licence"),
        ("needy_models:good", "cannot be imported.*a_package_that_is_not_there"),
        ("their_models:bad", "has no 'bad'"),
        ("their_models:constant", "is no model factory"),
        ("their_models:module", "is no model factory"),
        ("their_models:raises", "failed at width 1.*embeddings.bin"),
        ("their_models:wants_width_and_raises_type_error", "failed at width 1.*TypeError"),
        ("their_models:returns_number", "does not return a torch module.*int"),
        ("their_models:shapeless", "does not say what it takes.*input_shape"),
        ("their_models:wrong_shape", "does not run on inputs of its own input_shape"),
        ("their_models:Counting", "changes its buffer 'calls'.*GroupNorm"),
        ("their_models:frozen", "all parameters of model .* are frozen"),
        ("their_models:double", "cannot be used.*float64"),
        ("their_models:sequence", "has no parameters"),
        ("their_models:scales_output", "changes its input or output"),
        ("their_models:other_layers", "has other tensors"),
        ("their_models:empty", "has no parameters"),
        ("their_models:Reserved", "is called 'w'"),
    ],
)
def test_each_wrong_factory_has_its_own_words(name, words):
    """What is wrong with a factory is said, never shown as a traceback."""
    with pytest.raises(ModelError, match=f"(?s){words}"):
        load_factory(name)


def test_a_model_that_gives_no_logits_is_refused(factories):
    """A classifier gives one row of at least two logits per example."""
    (factories / "shapes.py").write_text(
        "from torch import nn\n"
        "def square(width):\n"
        "    m = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))\n"
        "    m.input_shape = (4,)\n"
        "    return m\n"
    )
    with pytest.raises(ModelError, match="does not classify"):
        load_factory("shapes:square")


def test_a_vector_goes_in_and_comes_out_unchanged():
    """`load_vector` and `vector_of` are inverse."""
    module = built_in("har-cnn1d").build(0.25)
    flat = np.random.default_rng(0).standard_normal(layout_of(module).size).astype(np.float32)
    load_vector(module, flat)
    assert np.array_equal(vector_of(module), flat)


@pytest.mark.parametrize("form", ["safetensors", "state-dict", "nested", "half"])
def test_weights_are_read_from_either_format(tmp_path, form):
    """Both safetensors and weights-only checkpoints give the module's own vector."""
    from safetensors.torch import save_file

    module = built_in("har-cnn1d").build(0.25, seed=4)
    state = module.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "half":
        torch.save({k: v.half() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, path)
    np.testing.assert_allclose(load_weights(path, layout_of(module)), vector_of(module), atol=1e-3 if form == "half" else 0)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_a_file_has_masked_is_not_gone(tmp_path, name):
    """A push begins anew: negative zeros, which a multiplied mask leaves behind, are read as zeros that can be trained."""
    from safetensors.torch import save_file

    module = built_in("har-cnn1d").build(0.25, seed=4)
    state = {key: value * -0.0 if key.endswith("weight") else value for key, value in module.state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    assert any(torch.signbit(value[value == 0]).any() for value in state.values()), "the file has some"
    assert not has_mark(load_weights(tmp_path / name, layout_of(module))).any()


class Payload:
    """Something whose unpickling would call a function."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, capfd):
    """Nothing that is loaded can run code."""
    path = tmp_path / "w.pt"
    torch.save({"a": Payload()}, path)
    with pytest.raises(ModelError, match="no torch checkpoint of plain tensors"):
        load_weights(path, layout_of(built_in("har-cnn1d").build()))
    assert "never be printed" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.bias"), "tensor 'head.bias' does not match the model"),
        (lambda s: s.update(extra=torch.zeros(2)), "tensors that the model does not have.*extra"),
        (lambda s: s.update({"head.bias": torch.zeros(7)}), "expected shape \\(6,\\), found shape \\(7,\\)"),
        (lambda s: s.update({"head.bias": torch.zeros(6, dtype=torch.int64)}), "floating-point values"),
        (lambda s: s.update({"head.bias": torch.full((6,), torch.nan)}), "NaN or infinite"),
    ],
)
def test_each_wrong_checkpoint_has_its_own_words(tmp_path, change, words):
    """A checkpoint of another model says which tensor does not fit, and how."""
    module = built_in("har-cnn1d").build()
    state = dict(module.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=words):
        load_weights(tmp_path / "w.pt", layout_of(module))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_missing_and_damaged_weight_files_are_named(tmp_path, name):
    """A file that is not there or not readable is an error about that file."""
    path = tmp_path / name
    with pytest.raises(ModelError, match="there is no weights file"):
        load_weights(path, layout_of(nn.Linear(2, 2)))
    path.write_bytes(b"\x00garbage" * 30)
    with pytest.raises(ModelError, match=name):
        load_weights(path, layout_of(nn.Linear(2, 2)))


@pytest.mark.usefixtures("factories")
def test_running_statistics_are_state_of_the_layout():
    """BatchNorm's mean and variance stand behind the parameters; its counter is left out; weights with all three load."""
    source = load_factory("their_models:normalised")
    layout = layout_of(source.build())
    assert [(t.name, t.role) for t in layout.tensors[-2:]] == [("1.running_mean", "state"), ("1.running_var", "state")]
    assert layout.size == 4 * 8 + 8 + 8 + 8 + 8 * 3 + 3 + 16
    module = source.build(seed=2)
    module[1].running_mean.fill_(7.0)
    other = source.build()
    load_vector(other, vector_of(module))
    assert torch.equal(other[1].running_mean, module[1].running_mean)


@pytest.mark.usefixtures("factories")
def test_patterns_freeze_tensors_and_keep_them_personal():
    """By name; frozen statistics put their layer into evaluation; shared coordinates are those that are neither."""
    source = load_factory("their_models:normalised", freeze=("0.*", "1.running*"), personal=("1.*",))
    module = source.build()
    layout = layout_of(module)
    roles = {t.name: (t.role, t.personal) for t in layout.tensors}
    assert roles["0.weight"] == ("frozen", False)
    assert roles["1.weight"] == ("trained", True)
    assert roles["1.running_var"] == ("frozen", True)
    assert roles["2.bias"] == ("trained", False)
    assert not module[1].training
    shared = layout.shared()
    assert [t.name for t, place in layout.slices() if place.start in shared] == ["2.weight", "2.bias"]
    assert len(shared) == 27
    assert len(layout.personal()) == 32


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": ("conv*",)}, "no tensor of model .* is called 'conv\\*'"),
        ({"personal": ("nothing",)}, "no tensor of model .* is called 'nothing'"),
        ({"freeze": ("*",)}, "all parameters .* are frozen"),
        ({"personal": ("*",)}, "all tensors .* are personal"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(options, words):
    """A misspelt name is not passed over, and something must be left to train and to send."""
    with pytest.raises(ModelError, match=words):
        load_factory("their_models:good", **options)


def test_other_losses_take_outputs_of_any_shape(factories):
    """A model with one output, or with as many axes as its input, is a model for bce and mse."""
    (factories / "shapes2.py").write_text(
        "from torch import nn\n"
        "def window(width):\n"
        "    m = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))\n"
        "    m.input_shape = (4,)\n"
        "    return m\n"
        "def one(width):\n"
        "    m = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))\n"
        "    m.input_shape = (4,)\n"
        "    return m\n"
    )
    assert load_factory("shapes2:window", Recipe("mse")).classes == 4
    assert load_factory("shapes2:one", Recipe("bce")).classes == 1
