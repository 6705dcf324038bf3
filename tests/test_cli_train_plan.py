"""The plan of `edgefl train start`: what options and file make of it, and every plan that is impossible."""

import msgspec
import numpy as np
import pytest

from edgefl.cli.main import run
from edgefl.compress.magnitude import pruned
from edgefl.layout import Layout
from edgefl.plan import FleetPruning, JumpStart, Plan
from edgefl.recipe import Recipe
from edgefl.server.founding import create_fleet
from edgefl.server.variants import store_parent
from edgefl.store.ledger import Outcome, close_round, newest_training, trainings
from edgefl.store.versions import get_version, variants
from toyclock import START
from toyupdates import WIDE
from trainstart import commanded, plan_of, start


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A new fleet directory, to be copied."""
    return create_fleet(tmp_path_factory.mktemp("new") / "fleet", name="test").path


@pytest.fixture
def fleet(founded, tmp_path, monkeypatch):
    """A fleet directory with four devices and one version; commands find it."""
    return commanded(founded, tmp_path, monkeypatch)


def test_default_cohort_is_who_will_take_part(fleet, capsys):
    """Without a cohort a round closes with an update of every device that can take part in it."""
    assert start() == 0
    assert plan_of(fleet).cohort == 4
    assert "with 4 updates" in capsys.readouterr().out
    run(["train", "stop", "toy"])
    assert start("--fraction", "0.5") == 0
    assert plan_of(fleet).cohort == 2


def test_default_cohort_counts_devices_that_have_a_variant(fleet):
    """Revoked devices and profiles for which the version has no variant do not count."""
    fleet.provision(e="huge")
    with fleet.database:
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='a'")
    assert start() == 0
    assert plan_of(fleet).cohort == 3


def test_plan_file_and_options(fleet, tmp_path):
    """Options win over the file; what neither says has its default, the cohort too."""
    path = tmp_path / "plan.toml"
    path.write_text("rounds = 7\nbits = 2\nquorum = 2\n")
    assert start("--plan", str(path), "--bits", "3") == 0
    plan = plan_of(fleet)
    assert (plan.rounds, plan.bits, plan.quorum, plan.cohort, plan.epochs) == (7, 3, 2, 4, 1)


def test_every_option_reaches_the_plan(fleet):
    """What an operator says on the command line stands in the plan under its own name."""
    wanted = {
        "decay": 0.9, "rate": "loss", "price": 0.5, "downlink_sparsity": 0.1, "sampling": "loss", "aggregator": "trimmed-mean",
        "clip": 3.0, "exclude": 0.2, "optimizer": "yogi",
    }  # fmt: skip
    options = [
        f"--{'server-optimizer' if name == 'optimizer' else name.replace('_', '-')}={value}" for name, value in wanted.items()
    ]
    assert start(*options) == 0
    plan = plan_of(fleet)
    assert {name: getattr(plan, name) for name in wanted} == wanted


def test_options_of_pruning_and_of_the_jump_start_are_gathered(fleet, tmp_path, capsys):
    """They change what the file says of the same table, 0 switches it off, and without any the file's stands."""
    path = tmp_path / "plan.toml"
    path.write_text("[pruning]\ntarget = 0.8\nfirst = 3\n\n[jump_start]\ndevices = 2\n")
    assert start("--plan", str(path), "--pruning", "0.95", "--pruning-below", "0.5") == 0
    plan = plan_of(fleet)
    assert plan.pruning == FleetPruning(target=0.95, first=3, below=0.5)
    assert plan.jump_start == JumpStart(devices=2)
    run(["train", "stop", "toy"])
    assert start("--plan", str(path), "--pruning", "0", "--jump-start", "0") == 0
    assert (plan_of(fleet).pruning, plan_of(fleet).jump_start) == (None, None)
    run(["train", "stop", "toy"])
    assert start("--jump-start", "1", "--jump-epochs", "5", "--pruning", "0.9", "--pruning-scope", "layer") == 0
    assert plan_of(fleet).jump_start == JumpStart(devices=1, epochs=5)
    assert plan_of(fleet).pruning == FleetPruning(scope="layer")
    run(["train", "stop", "toy"])
    assert start("--plan", str(path), "--pruning-every", "2", "--jump-epochs", "5") == 0
    assert plan_of(fleet).pruning == FleetPruning(target=0.8, first=3, every=2)
    assert plan_of(fleet).jump_start == JumpStart(devices=2, epochs=5)
    capsys.readouterr()
    assert start("--pruning", "1.5") == 2
    assert "the plan is impossible" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "missing"), [("--pruning-every", "--pruning"), ("--jump-epochs", "--jump-start")])
def test_an_option_of_a_part_does_not_switch_it_on(fleet, option, missing, capsys):
    """Pruning is for good: nobody gets it, or a race, who has not asked for it; the error names what is missing."""
    assert start(option, "2") == 2
    error = capsys.readouterr().err
    assert f"{option} without {missing}" in error
    assert f"Add {missing}" in error
    assert trainings(fleet.database) == []


UNFIT = [
    ("--jump-start 1 --aggregator trimmed-mean", "found aggregator trimmed-mean"),
    ("--jump-start 1 --clip 2 --exclude 0.1", "found clip, exclude"),
    ("--jump-start 5", "expected at most 4, found 5"),
    ("--pruning 0.9 --rounds 5", "ends before anything is pruned"),
    ("--pruning 0.9 --staleness 33", "staleness of at most 32"),
]


@pytest.mark.parametrize(("options", "said"), UNFIT)
def test_a_plan_that_would_not_do_what_it_says_is_refused(fleet, options, said, capsys):
    """What contradicts itself or asks more than the fleet has starts nothing."""
    assert start(*options.split()) == 2
    assert said in capsys.readouterr().err
    assert trainings(fleet.database) == []


def test_a_pruned_model_needs_the_weights_of_late_updates(fleet, capsys):
    """Who asks for more lateness than there are weights kept for is told so, also when the plan itself does not prune."""
    assert start("--staleness", "33") == 0
    training = newest_training(fleet.database, "toy")
    layout = get_version(fleet.database, "toy", 1).layout
    parent = pruned(np.ones(layout.size, dtype=np.float32), layout, FleetPruning(target=0.5, share=1.0))
    assert close_round(fleet.database, training.id, 1, Outcome((), store_parent(fleet.blobs, parent)), START, last=False)
    run(["train", "stop", "toy"])
    capsys.readouterr()
    assert start("--staleness", "33") == 2
    error = capsys.readouterr().err
    assert "of a pruned model, late updates" in error
    assert "expected a staleness of at most 32, found 33" in error
    assert error.endswith("Use a smaller staleness.\n")
    assert len(trainings(fleet.database)) == 1
    assert start("--staleness", "32") == 0


def test_a_model_without_anything_to_prune_is_not_pruned(fleet, capsys):
    """Frozen tensors stay whole: a parent of them alone is refused, and trained without pruning."""
    with fleet.database:
        frozen = Layout(tuple(msgspec.structs.replace(tensor, role="frozen") for tensor in WIDE.tensors))
        fleet.database.execute("UPDATE versions SET layout=?", (msgspec.msgpack.encode(frozen),))
    assert start("--pruning", "0.9") == 2
    assert "nothing of the model can be pruned" in capsys.readouterr().err
    assert start() == 0


def test_what_files_cannot_say_is_gone_is_not_pruned(fleet, capsys):
    """A version with weights in four bits is refused before a round begins; without pruning it is trained."""
    with fleet.database:
        fleet.database.execute("UPDATE variants SET precision='int4' WHERE profile='small'")
    assert start("--pruning", "0.9") == 2
    assert "int4" in capsys.readouterr().err
    assert start() == 0


def test_every_key_of_a_plan_has_an_option_or_is_named_by_the_help(capsys):
    """No field of the plan is hidden from an operator."""
    run(["train", "start", "--help"])
    text = capsys.readouterr().out
    for field in Plan.__struct_fields__:
        shown = {"optimizer": "--server-optimizer"}.get(field, f"--{field.replace('_', '-')}")
        assert shown in text or f" {field}" in text.partition("More keys")[2], field


def test_a_plan_that_the_codec_or_the_graphs_cannot_follow_is_refused(fleet, tmp_path, capsys):
    """Rotation of sparse values, and curvature without plain SGD, are refused at the start, not on the boards."""
    path = tmp_path / "plan.toml"
    path.write_text("rotated = true\n")
    assert start("--plan", str(path)) == 2
    assert "rotated values are dense" in capsys.readouterr().err
    assert start("--plan", str(path), "--jump-start", "1") == 2
    assert "rotated values are dense" in capsys.readouterr().err, "the race alone is dense"
    assert start("--rate", "curvature") == 0
    run(["train", "stop", "toy"])
    fleet.push(recipe=Recipe(optimizer="adamw"))
    assert start("--rate", "curvature") == 2
    assert "expected a version whose optimiser is plain SGD, found adamw" in capsys.readouterr().err


def test_a_ramp_needs_exits_that_can_be_told(fleet, tmp_path, capsys):
    """A version whose graphs have no weight for it is refused with what to do; one that has is trained."""
    path = tmp_path / "plan.toml"
    path.write_text("ramp = 10\n")
    assert start("--plan", str(path)) == 2
    assert "Push it again with --loss self-distillation, or train without ramp" in capsys.readouterr().err
    fleet.push(recipe=Recipe("self-distillation", mutual=True))
    assert start("--plan", str(path)) == 0
    assert plan_of(fleet).ramp == 10


def test_a_velocity_that_does_not_fit_is_refused(fleet, tmp_path, capsys):
    """Momentum correction stores a second vector twice: a profile without room for it is named."""
    path = tmp_path / "plan.toml"
    path.write_text("correction = 0.9\n")
    with fleet.database:
        fleet.database.execute("UPDATE variants SET budget=1000 WHERE profile='small'")
    assert start("--plan", str(path)) == 2
    assert "does not fit profile small: expected at most 1000 bytes" in capsys.readouterr().err
    with fleet.database:
        fleet.database.execute("UPDATE variants SET budget=20000")
    assert start("--plan", str(path)) == 0


def test_frozen_tensors_have_no_velocity(fleet, tmp_path):
    """A profile whose room would not do for the momentum of every parameter does for that of the trained ones."""
    path = tmp_path / "plan.toml"
    path.write_text("correction = 0.9\n")
    first, *others = WIDE.tensors
    half = Layout((msgspec.structs.replace(first, role="frozen"), *others))
    fleet.push("big", layout=half)
    manifest = variants(fleet.database, "toy", 2)[0].manifest
    rounds = manifest.total_bytes + 2 * manifest.file("weights").length
    room = rounds + 16 * sum(tensor.size for tensor in others)
    for budget, code in ((room, 0), (room - 1, 2)):
        run(["train", "stop", "toy"])
        with fleet.database:
            fleet.database.execute("UPDATE variants SET budget=?", (budget,))
        assert start("--plan", str(path)) == code


def test_context_that_would_keep_too_many_weights_is_left_out_and_said(fleet, capsys):
    """Updates that may be very late are coded plainly."""
    assert start("--staleness", "100") == 0
    assert "coded without context" in capsys.readouterr().out
    assert plan_of(fleet).context


IMPOSSIBLE = [
    ("--rounds", "0"), ("--rounds", "1000001"), ("--rounds", "1" + "0" * 30), ("--epochs", "0"), ("--epochs", "-1"),
    ("--learning-rate", "0"), ("--learning-rate", "-0.1"), ("--learning-rate", "nan"), ("--learning-rate", "inf"),
    ("--sparsity", "0"), ("--sparsity", "1.01"), ("--sparsity", "nan"), ("--bits", "0"), ("--bits", "9"),
    ("--fraction", "0"), ("--fraction", "1.5"), ("--fraction", "nan"), ("--cohort", "0"), ("--cohort", "-3"),
    ("--quorum", "0"), ("--quorum", "5"), ("--deadline", "0"), ("--deadline", "nan"), ("--deadline", "1e9"),
    ("--staleness", "-1"), ("--staleness", "1001"), ("--server-rate", "0"), ("--server-rate", "11"),
    ("--seed", "-1"), ("--seed", "4294967296"), ("--proximal", "-1"), ("--proximal", "0.1"),
    ("--rounds", "many"), ("--deadline", ""), ("--nonsense", "1"), ("--decay", "0"), ("--decay", "1.1"), ("--price", "-1"),
    ("--rate", "free"), ("--sampling", "none"), ("--aggregator", "median"), ("--server-optimizer", "adamw"),
    ("--downlink-sparsity", "0"), ("--clip", "-1"), ("--exclude", "2"),
]  # fmt: skip


@pytest.mark.parametrize("option", IMPOSSIBLE, ids=" ".join)
def test_impossible_plan_is_refused(fleet, option, capsys):
    """A value out of range is one line on stderr and exit code 2, and starts nothing."""
    assert start(*option) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "bug" not in error
    assert trainings(fleet.database) == []


@pytest.mark.parametrize("text", ["rounds = 0", "cohort = 0", "round = 5", "rounds = ", "bits = '4'", "\0"])
@pytest.mark.usefixtures("fleet")
def test_impossible_plan_file_is_refused(tmp_path, text, capsys):
    """A plan file that is misspelt, malformed or out of range is named."""
    path = tmp_path / "plan.toml"
    path.write_text(text)
    assert start("--plan", str(path)) == 2
    assert "plan.toml" in capsys.readouterr().err
    assert start("--plan", str(tmp_path / "nowhere.toml")) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("npz:nowhere.npz", "nowhere.npz"),
        ("npz:wrong.npz", "does not fit"),
        ("what:", "no such data source"),
        ("npz:", "names no"),
    ],
)
def test_holdout_that_cannot_be_used_is_refused_at_the_start(fleet, tmp_path, monkeypatch, capsys, source, said):
    """Hold-out examples that are missing, do not fit the model, or have no such kind are found now and not by the server."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 7), dtype=np.float32), y=np.zeros(3, dtype=np.int64))
    assert start("--holdout", source) == 2
    assert said in capsys.readouterr().err
    assert trainings(fleet.database) == []


def test_holdout_is_found_from_elsewhere(fleet, tmp_path, monkeypatch):
    """A relative path is kept as an absolute one, because the server runs in another directory."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "test.npz", x=np.zeros((3, 10), dtype=np.float32), y=np.zeros(3, dtype=np.int64))
    assert start("--holdout", "npz:test.npz") == 0
    assert newest_training(fleet.database, "toy").holdout == f"npz:{tmp_path}/test.npz"
