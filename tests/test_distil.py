"""Lessons from an ensemble to a model: the weighted training step, the widths of a family, and `edgefl distil` on a fleet."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest

import make_graphs
import toyfleet as toy
from edgefl.aggregate.ensemble import probabilities
from edgefl.cli.main import run
from edgefl.codec.advance import advance
from edgefl.codec.marks import gone
from edgefl.codec.weights import Precision, decode_weights, encode_weights
from edgefl.compress.axes import encode_axes, index_from_axes
from edgefl.engine.contract import VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import EngineError, FleetError
from edgefl.examples import Examples
from edgefl.layout import Layout, Tensor, index_map, nested_index
from edgefl.plan import Plan
from edgefl.recipe import Recipe
from edgefl.server.distil import Teaching, distil
from edgefl.server.founding import create_fleet
from edgefl.server.members import members_of
from edgefl.server.status import fleet_status
from edgefl.server.teaching import Pupil, beliefs, taught
from edgefl.server.variants import load_parent, store_parent
from edgefl.store.database import transaction
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import Outcome, close_round, end_training, newest_training, newest_weights, start_training
from edgefl.store.releases import release
from edgefl.store.taught import Taught, add_rounds
from edgefl.store.versions import get_version
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import encode
from edgefl.wire.releases import Manifest

GOLDEN = make_graphs.read("variant-dense")
START = np.frombuffer(GOLDEN.start, dtype=np.float32)
MODELS = ("left", "right")


@pytest.fixture
def engine(tmp_path):
    """The golden variant in the portable engine."""
    paths = {role: tmp_path / role for role in GOLDEN.files}
    for role, path in paths.items():
        path.write_bytes(GOLDEN.files[role])
    files = VariantFiles("portable", GOLDEN.layout, GOLDEN.input_shape, GOLDEN.classes, GOLDEN.batch, paths, GOLDEN.recipe)
    return open_engine(files, threads=1)


def examples(count=60, seed=0):
    """A pattern for each class with noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, GOLDEN.classes, count)
    patterns = np.random.default_rng(99).normal(size=(GOLDEN.classes, *GOLDEN.input_shape))
    return Examples((patterns[y] + 0.3 * rng.normal(size=(count, *GOLDEN.input_shape))).astype(np.float32), y)


def trained(engine, given, weights=None, epochs=1, start=START, rate=0.05):
    """The parameters after training."""
    engine.set_vector(start)
    engine.train(given, epochs=epochs, learning_rate=rate, rng=np.random.default_rng(0), weights=weights)
    return engine.vector()


def test_weights_of_one_change_nothing(engine) -> None:
    """Examples that all weigh 1 are trained on as without weights, to the last bit."""
    given = examples()
    assert np.array_equal(trained(engine, given), trained(engine, given, np.ones(60, dtype=np.float32)))


def test_weighted_rows_are_a_soft_label(engine) -> None:
    """A step on one input with three labels, weighted, changes what the mean of the three steps changes, weighted so."""
    x = examples(1).x
    shares = np.array([0.5, 0.3, 0.2], dtype=np.float32)
    rows = Examples(np.repeat(x, 3, axis=0), np.array([0, 1, 2]))
    together = trained(engine, rows, shares) - START
    single = [trained(engine, Examples(x, np.array([label]))) - START for label in range(3)]
    assert together == pytest.approx(sum(share * delta for share, delta in zip(shares, single, strict=True)), abs=1e-6)


def test_a_model_learns_what_it_is_told(engine) -> None:
    """After its lessons it believes of other examples nearly what its teacher does, and its lessons repeat to the last bit."""
    teacher = trained(engine, examples(200), epochs=30)
    x, other = examples(200, seed=1).x, examples(50, seed=2).x
    soft = beliefs(engine, teacher, x)

    def learn():
        return taught(START, GOLDEN.layout, [Pupil(engine, None, 1.0)], x, soft, epochs=20, learning_rate=0.1, seed=(3,))

    learned = learn()
    wanted = beliefs(engine, teacher, other)
    before, after = (np.abs(beliefs(engine, vector, other) - wanted).mean() for vector in (START, learned))
    assert after < before / 3
    assert np.array_equal(learned, learn())


def test_a_width_is_taught_where_it_has_coordinates(engine) -> None:
    """A pupil that is a part of a larger parent changes that part alone, as it would by itself."""
    parent = np.concatenate([np.full(5, 7.0, dtype=np.float32), START])
    given = examples()
    soft = probabilities(np.eye(GOLDEN.classes, dtype=np.float32)[given.y] * 4)
    index = np.arange(5, len(parent), dtype=np.int64)
    options = {"epochs": 1, "learning_rate": 0.1, "seed": (1,)}
    whole = Layout((Tensor("before", (5,)), *GOLDEN.layout.tensors))
    found = taught(parent, whole, [Pupil(engine, index, 3.0)], given.x, soft, **options)
    alone = taught(START, GOLDEN.layout, [Pupil(engine, None, 1.0)], given.x, soft, **options)
    assert np.array_equal(found[:5], parent[:5])
    assert found[5:] == pytest.approx(alone, abs=1e-6)


def test_lessons_leave_out_what_is_gone_and_nothing_else(engine) -> None:
    """A pruned weight is still gone after lessons; a bias that happens to be negative zero learns like one that is zero."""
    places = {tensor.name: place for tensor, place in GOLDEN.layout.slices()}
    parent = START.copy()
    parent[places["2.weight"]][::2] = -0.0
    parent[places["2.bias"]] = 0.0
    odd = parent.copy()
    odd[places["2.bias"]] = -0.0
    given = examples()
    soft = probabilities(np.eye(GOLDEN.classes, dtype=np.float32)[given.y] * 4)
    plain, found = (
        taught(one, GOLDEN.layout, [Pupil(engine, None, 1.0)], given.x, soft, epochs=2, learning_rate=0.1, seed=(1,))
        for one in (parent, odd)
    )
    assert found[places["2.bias"]].all()
    assert np.array_equal(found, plain)
    assert gone(parent, GOLDEN.layout).sum() == 12
    assert np.array_equal(gone(found, GOLDEN.layout), gone(parent, GOLDEN.layout))


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A new fleet directory, to be copied."""
    return create_fleet(tmp_path_factory.mktemp("new") / "fleet", name="test").path


@pytest.fixture
def fleet(founded, tmp_path, monkeypatch):
    """A fleet with two models, and a device; commands find it."""
    fleet = toy.ToyFleet(shutil.copytree(founded, tmp_path / "fleet"))
    monkeypatch.setenv("EDGEFL_FLEET", str(fleet.root))
    fleet.provision(a="big")
    return fleet


def enter(fleet, model, parent, whole=GOLDEN.layout, axes=None, **said):
    """A released version with one variant, the golden one, which is these rows of the whole."""
    with transaction(fleet.database):
        row = (model, 1, toy.START, msgspec.msgpack.encode(whole), store_parent(fleet.blobs, parent))
        fleet.database.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", row)
        release(fleet.database, model, 1, toy.START)
    index = nested_index(whole, GOLDEN.layout) if axes is None else index_from_axes(whole, GOLDEN.layout, axes)
    offer(fleet, model, parent[index], axes, **said)


def offer(fleet, model, start, axes=None, files=GOLDEN.files, precision=Precision.FP32, **said):
    """The golden variant as what a version has for a profile."""
    contents = {**files, "weights": encode_weights(start, GOLDEN.layout, precision)}
    for data in contents.values():
        fleet.blobs.put(data)
    manifest = Manifest(
        model=model, version=1, profile="big", variant="w1-fp32", engine="portable", layout=GOLDEN.layout,
        input_shape=GOLDEN.input_shape, classes=GOLDEN.classes, batch=GOLDEN.batch,
        files=tuple(file_ref(role, data) for role, data in contents.items()), round_key=fleet.online.public_key,
        created=int(toy.START), expires=int(toy.START) * 2, recipe=GOLDEN.recipe,
    )  # fmt: skip
    manifest = msgspec.structs.replace(manifest, **said)
    with transaction(fleet.database):
        size, encoded = GOLDEN.layout.size, encode(manifest)
        row = (model, 1, manifest.profile, manifest.variant, str(precision), size, 1, 10**6, None, encoded, axes)
        fleet.database.execute("INSERT INTO variants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


WHOLE = Layout(tuple(Tensor(t.name, (2 * t.shape[0], *t.shape[1:]), t.role) for t in GOLDEN.layout.tensors))
KEPT = {t.name: (np.arange(1, 2 * t.shape[0], 2), *map(np.arange, t.shape[1:])) for t in GOLDEN.layout.tensors}
"""A parent of twice the rows, and those of them that a pruned variant keeps."""


def test_a_pruned_pupil_lies_where_the_push_has_cut_it(fleet):
    """Its coordinates are the rows that were kept, not the leading corner of its parent."""
    enter(fleet, "pruned", np.zeros(WHOLE.size, dtype=np.float32), WHOLE, encode_axes(WHOLE, GOLDEN.layout, KEPT))
    enter(fleet, "other", START)
    pupil = members_of(fleet.database, fleet.blobs, ["pruned", "other"])[0].pupils[0]
    assert np.array_equal(pupil.index, index_map(WHOLE, GOLDEN.layout, KEPT))


def test_a_shallower_pupil_lies_where_its_tensors_are(fleet):
    """A variant that holds some of its parent's tensors, and is trained by self-distillation, is taught like any other."""
    whole = Layout((Tensor("deeper", (5,)), *GOLDEN.layout.tensors))
    recipe = Recipe("self-distillation")
    enter(fleet, "shallow", np.zeros(whole.size, dtype=np.float32), whole, recipe=recipe)
    enter(fleet, "other", START)
    pupil = members_of(fleet.database, fleet.blobs, ["shallow", "other"])[0].pupils[0]
    assert np.array_equal(pupil.index, np.arange(5, whole.size))


@pytest.fixture
def models(fleet, engine, tmp_path):
    """One model that has learned and one that knows nothing, and the sources `more.npz`, `known.npz` and `test.npz`."""
    enter(fleet, "left", trained(engine, examples(300), epochs=10))
    enter(fleet, "right", START)
    for seed, name in enumerate(("more", "known", "test"), 1):
        made = examples(150, seed=seed)
        np.savez(tmp_path / f"{name}.npz", x=made.x, y=made.y)
    return tmp_path


def sources(directory):
    """The options of `edgefl distil`."""
    return [f"--on=npz:{directory}/more.npz", f"--labelled=npz:{directory}/known.npz", f"--holdout=npz:{directory}/test.npz"]


def test_what_one_model_knows_the_other_learns(fleet, models, capsys) -> None:
    """The ignorant model becomes nearly as good as the other, which stays good; a training goes on from there."""
    assert run(["distil", *MODELS, *sources(models), "--json", "--epochs=20", "--learning-rate=0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in found] == list(MODELS)
    knowing, ignorant = found
    assert ignorant["after"] > ignorant["before"] + 0.2
    assert min(knowing["after"], ignorant["after"]) > knowing["before"] - 0.05
    assert (ignorant["round"], ignorant["widths"]) == (1, 1)
    version = get_version(fleet.database, "right", 1)
    number, weights = newest_weights(fleet.database, version)
    assert (number, newest_training(fleet.database, "right").state) == (1, "finished")
    assert not np.array_equal(load_parent(fleet.blobs, weights), load_parent(fleet.blobs, version.weights))
    start_training(fleet.database, version, Plan(), "", toy.START)
    assert newest_weights(fleet.database, version) == (2, weights)


def test_a_running_server_announces_what_was_learned(fleet, models) -> None:
    """It takes the new weights up by itself, as the final weights of a round."""
    server = fleet.serve()
    assert not server.service._catalogue.trainings
    assert run(["distil", *MODELS, *sources(models)[:2]]) == 0
    server.turns(3)
    taken = server.service._catalogue.trainings
    assert set(taken) == set(MODELS)
    assert all(training.state.finished and training.state.number == 1 for training in taken.values())
    server.kill()


def rounds(fleet):
    """How many rounds each model has, by name."""
    return {name: newest_weights(fleet.database, get_version(fleet.database, name, 1))[0] for name in MODELS}


def test_a_model_that_gets_worse_keeps_its_weights(fleet, models, capsys) -> None:
    """Without weights the ignorant model makes the other doubt; nothing is recorded of it, and its weights stay."""
    options = [f"--on=npz:{models}/more.npz", f"--holdout=npz:{models}/test.npz", "--epochs=5", "--json"]
    assert run(["distil", *MODELS, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["round"], one["worse"]) for one in found] == [(0, ["w1-fp32"]), (1, [])]
    assert rounds(fleet) == {"left": 0, "right": 1}


def test_variants_of_any_engine_are_judged(fleet, engine, models, capsys) -> None:
    """A native variant that knows much and whose parent the portable one's lessons change keeps the model's weights."""
    parent = np.zeros(WHOLE.size, dtype=np.float32)
    parent[nested_index(WHOLE, GOLDEN.layout)] = trained(engine, examples(300), epochs=10)
    enter(fleet, "both", parent, WHOLE, encode_axes(WHOLE, GOLDEN.layout, KEPT))
    offer(fleet, "both", parent[nested_index(WHOLE, GOLDEN.layout)], engine="ort-training", profile="native", variant="w0.5-fp32")
    assert run(["distil", "both", "left", *sources(models), "--epochs=5", "--learning-rate=0.2"]) == 0
    assert "both@1: keeps its weights, with new ones worse: w0.5-fp32, accuracy" in capsys.readouterr().out
    assert newest_weights(fleet.database, get_version(fleet.database, "both", 1))[0] == 0


def test_what_devices_hold_is_judged_before_any_round(fleet, engine, models, capsys) -> None:
    """A codebook is retrained where the parent is not: its own file is asked and judged, until there are weights of a round."""
    healed = trained(engine, examples(300), epochs=10)
    enter(fleet, "cut", START)
    fleet.database.execute("DELETE FROM variants WHERE model='cut'")
    fleet.database.commit()
    offer(fleet, "cut", healed, precision=Precision.CODEBOOK, variant="w1-codebook")
    pushed = decode_weights(encode_weights(healed, GOLDEN.layout, Precision.CODEBOOK), GOLDEN.layout)
    member = members_of(fleet.database, fleet.blobs, ["cut"])[0]
    assert np.array_equal(member.parent, START)
    assert np.array_equal(member.voices[0].held, pushed)
    assert np.allclose(member.beliefs(examples()), beliefs(engine, pushed, examples().x), atol=1e-6)
    test = np.load(models / "test.npz")
    engine.set_vector(pushed)
    accuracy = engine.evaluate(Examples(test["x"], test["y"])).accuracy
    assert run(["distil", "cut", "left", *sources(models), "--json", "--epochs=1", "--learning-rate=0.001"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["before"] == pytest.approx(accuracy)
    assert (found["round"], found["worse"]) == (0, ["w1-codebook"])
    version = get_version(fleet.database, "cut", 1)
    add_rounds(fleet.database, [Taught(version, version.weights, Outcome((), store_parent(fleet.blobs, START * 2)))], toy.START)
    decoded = decode_weights(encode_weights(START * 2, GOLDEN.layout, Precision.INT4), GOLDEN.layout)
    assert np.array_equal(members_of(fleet.database, fleet.blobs, ["cut"])[0].voices[0].held, decoded)


def test_what_a_sparse_downlink_has_brought_is_judged(fleet, engine, models, capsys) -> None:
    """The part of a round's weights that devices hold is asked and judged, and the lessons go on from the whole."""
    version, learned = get_version(fleet.database, "right", 1), trained(engine, examples(300), epochs=10)
    plan = Plan(rounds=1, downlink_sparsity=0.1)
    training = start_training(fleet.database, version, plan, "", toy.START)
    held = advance(START, learned, 0.1)
    outcome = Outcome((), store_parent(fleet.blobs, learned), held=store_parent(fleet.blobs, held))
    assert close_round(fleet.database, training, 1, outcome, toy.START, last=True)
    member = members_of(fleet.database, fleet.blobs, ["right"])[0]
    assert np.array_equal(member.parent, learned)
    assert np.array_equal(member.voices[0].held, held)
    test = np.load(models / "test.npz")
    engine.set_vector(held)
    before = engine.evaluate(Examples(test["x"], test["y"])).accuracy
    assert run(["distil", *MODELS, *sources(models), "--json", "--epochs=1", "--learning-rate=0.001"]) == 0
    found = json.loads(capsys.readouterr().out)[1]
    assert found["before"] == pytest.approx(before)
    assert found["after"] > before, "the lessons bring devices what they did not hold as well"


@pytest.mark.usefixtures("models")
def test_what_a_stopped_round_has_sent_is_judged(fleet, engine) -> None:
    """Devices hold what the open round began with, until another training sends them all of it."""
    version, learned = get_version(fleet.database, "right", 1), trained(engine, examples(300), epochs=10)
    training = start_training(fleet.database, version, Plan(rounds=2, downlink_sparsity=0.1), "", toy.START)
    held = advance(START, learned, 0.1)
    outcome = Outcome((), store_parent(fleet.blobs, learned), held=store_parent(fleet.blobs, held))
    assert close_round(fleet.database, training, 1, outcome, toy.START, last=False)
    end_training(fleet.database, training, "stopped")
    assert np.array_equal(members_of(fleet.database, fleet.blobs, ["right"])[0].voices[0].held, held)
    end_training(fleet.database, start_training(fleet.database, version, Plan(), "", toy.START), "stopped")
    assert np.array_equal(members_of(fleet.database, fleet.blobs, ["right"])[0].voices[0].held, learned)


def teaching(directory):
    """What `distil` is given for the two models."""
    made = np.load(directory / "more.npz")
    return Teaching(MODELS, Examples(made["x"], made["y"]))


def test_models_change_together_or_not_at_all(fleet, models) -> None:
    """When others change the second model meanwhile, the first gets no new weights either; the same again changes both."""

    def meddle(text):
        if text == "teaching right@1":
            version = get_version(fleet.database, "right", 1)
            add_rounds(fleet.database, [Taught(version, version.weights, Outcome((), store_parent(fleet.blobs, START * 2)))], 1.0)

    with pytest.raises(FleetError, match="'right' have changed meanwhile; no model has new ones from here"):
        distil(Fleet.open(fleet.root), teaching(models), now=toy.START, on_progress=meddle)
    assert rounds(fleet) == {"left": 0, "right": 1}
    distil(Fleet.open(fleet.root), teaching(models), now=toy.START)
    assert rounds(fleet) == {"left": 1, "right": 2}


def test_a_pruned_model_is_shown_as_pruned_after_lessons(fleet, models) -> None:
    """What is gone before the lessons is gone after them, and the round that they count as says how much that is."""
    parent = START.copy()
    parent[next(place for tensor, place in GOLDEN.layout.slices() if tensor.name == "2.weight")][::2] = -0.0
    enter(fleet, "sparse", parent)
    names = replace(teaching(models), models=("left", "sparse"))
    distil(Fleet.open(fleet.root), names, now=toy.START)
    told = {one.model: one.pruned for one in fleet_status(fleet.database, "test").trainings}
    assert told == {"left": 0.0, "sparse": 0.5}


def test_lessons_that_fail_name_their_model(fleet, models) -> None:
    """A training graph that does not load ends everything before anything is recorded, and the error says so."""
    fleet.database.execute("DELETE FROM variants WHERE model='right'")
    fleet.database.commit()
    offer(fleet, "right", START, files={**GOLDEN.files, "train": b"no graph"})
    with pytest.raises(EngineError, match="the lessons of right@1 failed, and no model has been changed"):
        distil(Fleet.open(fleet.root), teaching(models), now=toy.START)
    assert rounds(fleet) == {"left": 0, "right": 0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["left"], "two models"), (["left", "left"], "two models"), (["left", "nobody"], "no model 'nobody'")],
)
def test_impossible_distillations_say_what_to_do(models, capsys, arguments, said) -> None:
    """One model, or one that does not exist, is an error of the tree."""
    assert run(["distil", *arguments, *sources(models)]) == 2
    assert said in capsys.readouterr().err


def test_a_model_in_training_is_left_alone(fleet, models, capsys) -> None:
    """Its devices are on their way to other weights; the error says how to stop it."""
    start_training(fleet.database, get_version(fleet.database, "left", 1), Plan(), "", toy.START)
    assert run(["distil", *MODELS, *sources(models)]) == 2
    assert "train stop left" in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_weights_that_have_changed_meanwhile_are_not_replaced(fleet) -> None:
    """A round is added to the weights that it was made from, or not at all."""
    version = get_version(fleet.database, "left", 1)
    outcome = Outcome((), store_parent(fleet.blobs, START * 2))
    with pytest.raises(FleetError, match="changed meanwhile"):
        add_rounds(fleet.database, [Taught(version, b"\0" * 32, outcome)], toy.START)
    assert newest_weights(fleet.database, version) == (0, version.weights)
    assert add_rounds(fleet.database, [Taught(version, version.weights, outcome)], toy.START) == [1]


def test_a_model_of_the_native_engine_alone_is_refused(fleet, models, capsys) -> None:
    """The native engine cannot weigh examples."""
    enter(fleet, "native", START, engine="ort-training")
    assert run(["distil", "left", "native", *sources(models)]) == 2
    assert "engine portable" in capsys.readouterr().err
