"""`edgefl status`: the fleet at a glance, for people and as JSON."""

import json

import pytest

import toyfleet as toy
from edgefl.cli.main import run
from edgefl.cli.text import printable
from edgefl.compress.magnitude import share_gone
from edgefl.plan import FleetPruning
from edgefl.server.founding import create_fleet
from edgefl.server.status import fleet_status
from edgefl.store.database import transaction
from edgefl.store.ledger import Outcome, close_round
from edgefl.store.presence import PresenceBook
from edgefl.store.tally import add_counter
from edgefl.store.updates import store_update
from edgefl.wire.presence import Installed, Report, State
from toyclock import START
from toyupdates import NARROW, VARIANTS, WIDE, head_of


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A fleet directory with three devices; commands find it."""
    fleet = toy.ToyFleet(create_fleet(tmp_path / "fleet", name="farm").path)
    fleet.provision(a="big", b="small", c="small")
    monkeypatch.setenv("EDGEFL_FLEET", str(fleet.root))
    return fleet


def hear(fleet, device, state=None, report=None):
    """The server hears something of a device."""
    book = PresenceBook()
    if state:
        book.state(device, state, START)
    if report:
        book.report(device, report, START)
    with transaction(fleet.database):
        book.write(fleet.database)


def shown(capsys):
    """Lines of `edgefl status`."""
    assert run(["status"]) == 0
    return capsys.readouterr().out.splitlines()


def test_empty_fleet_is_one_line(tmp_path, monkeypatch, capsys):
    """A new fleet has nothing to show, which is no error."""
    monkeypatch.setenv("EDGEFL_FLEET", str(create_fleet(tmp_path / "fleet", name="new").path))
    assert shown(capsys) == ["fleet new: 0 devices, 0 online"]


def test_devices_versions_trainings_and_counters_are_shown(fleet, capsys):
    """Everything the server knows has its line."""
    fleet.push()
    hear(fleet, "a", State(1, online=True, models=(Installed("toy", 1, "w1-fp32"),)), Report("toy", 1, 3, "training"))
    hear(fleet, "b", State(1, online=False))
    with transaction(fleet.database):
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='c'")
        add_counter(fleet.database, "messages refused", 7)
    training = fleet.train(rounds=4)
    close_round(fleet.database, training, 1, Outcome([], bytes(32), 0.5, 1.0), START, last=False)
    lines = shown(capsys)
    assert lines[0] == "fleet farm: 3 devices, 1 online"
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["a", "big", "online"], ["b", "small", "offline"], ["c", "small", "revoked"],
    ]  # fmt: skip
    assert "toy@1 w1-fp32" in lines[1]
    assert lines[1].endswith("training round 3")
    assert lines[4].startswith("toy@1 for big: w1-fp32, ")
    assert lines[6] == "toy@1: running, round 2 of 4, accuracy 0.5000, 0 B up, 0 B down"
    assert lines[7] == "messages refused: 7"


def count(fleet, training, number, *devices, length=30):
    """These devices' updates are stored and counted in this round."""
    for device in devices:
        data = bytes(length)
        variant = VARIANTS[fleet.profiles[device]][0]
        head = head_of(device, number, data, variant=variant)
        assert store_update(fleet.database, training, device, head, data, START)
    close_round(fleet.database, training, number, Outcome([(d, number) for d in devices], bytes(32)), START, last=False)


def test_fairness_and_size_of_updates_are_shown(fleet, capsys):
    """How evenly the devices that can take part did so, and the mean bits of an update, for a training and for each round."""
    fleet.push()
    training = fleet.train(rounds=9)
    count(fleet, training, 1, "a", "b")
    count(fleet, training, 2, "a", length=15)
    found = fleet_status(fleet.database, "farm").trainings[0]
    assert (found.fairness.devices, found.fairness.least, found.fairness.most) == (3, 0, 2)
    assert found.fairness.jain == pytest.approx(9 / (3 * 5))
    wide, narrow = WIDE.size, NARROW.size
    assert [one.bits_per_parameter for one in found.rounds] == [
        pytest.approx((240 / wide + 240 / narrow) / 2), pytest.approx(120 / wide), None,
    ]  # fmt: skip
    assert found.bits_per_parameter == pytest.approx((240 / wide + 240 / narrow + 120 / wide) / 3)
    assert shown(capsys)[-1].endswith("bits a parameter, 0 to 2 updates a device, Jain's index 0.60")


def test_followed_rounds_say_how_even_the_work_was_until_then(fleet, capsys):
    """`train follow --json` has the figures as they were when the round closed."""
    fleet.push()
    training = fleet.train(rounds=9)
    count(fleet, training, 1, "a", "b", "c")
    count(fleet, training, 2, "a")
    run(["train", "stop", "toy"])
    capsys.readouterr()
    assert run(["train", "follow", "toy", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["fairness"]["jain"], first["fairness"]["largest_share"]) == (1.0, pytest.approx(1 / 3))
    assert (second["fairness"]["most"], second["fairness"]["largest_share"]) == (2, 0.5)
    assert second["bits_per_parameter"] == pytest.approx(240 / WIDE.size)


def test_json_says_the_same_and_keeps_its_names(fleet, capsys):
    """With --json there is one object, whose fields are those of `FleetStatus`; what is unknown is null."""
    fleet.push()
    training = fleet.train(rounds=4)
    assert run(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["fleet", "devices", "variants", "trainings", "counters", "warnings"]
    assert [(d["id"], d["seen"], d["online"], d["models"]) for d in found["devices"]] == [(x, None, False, []) for x in "abc"]
    assert [(v["profile"], v["version"], v["accuracy"]) for v in found["variants"]] == [("big", 1, None), ("small", 1, None)]
    assert found["trainings"][0]["rounds"] == [
        {
            "round": 1, "open": True, "seconds": None, "accuracy": None, "loss": None,
            "updates": 0, "uplink_bytes": 0, "downlink_bytes": 0, "bits_per_parameter": None,
            "pruned": None,
        }
    ]  # fmt: skip
    assert training == 1


def trained(capsys):
    """The line of `edgefl status` about the newest training."""
    return [line for line in shown(capsys) if line.startswith("toy@1: ")][-1]


def test_what_is_pruned_is_shown_for_the_training_and_for_each_round(fleet, capsys):
    """A server that prunes says how much is gone and how much will be; a later training of the version begins with as much."""
    fleet.push()
    fleet.train(rounds=3, cohort=1, pruning=FleetPruning(target=0.75, share=0.5, first=1))
    assert ", pruned 0.0 % (75.0 % in the end), " in trained(capsys)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    gone = share_gone(server.training.parent, WIDE)
    assert gone == pytest.approx(0.5, abs=0.01)
    assert f", pruned {100 * gone:.1f} % (75.0 % in the end), " in trained(capsys)
    run(["train", "stop", "toy"])
    capsys.readouterr()
    assert run(["train", "follow", "toy"]) == 0
    assert f"  pruned {100 * gone:.1f} %" in capsys.readouterr().out.splitlines()[0]
    fleet.train(rounds=2)
    first, second = fleet_status(fleet.database, "farm").trainings
    assert [one.pruned for one in first.rounds] == [gone, None]
    assert (first.pruned, first.pruning_target) == (gone, 0.75)
    assert (second.pruned, second.pruning_target) == (gone, None)
    assert trained(capsys).endswith(f"round 3 of 4, pruned {100 * gone:.1f} %, 0 B up, 0 B down")


def test_what_a_later_training_prunes_is_not_said_of_an_earlier_one(fleet):
    """A training that was stopped before its last round shares the numbers of rounds with the next one, and nothing else."""
    fleet.push()
    first = fleet.train(rounds=20)
    close_round(fleet.database, first, 1, Outcome([], bytes(32), pruned=0.0), START, last=False)
    run(["train", "stop", "toy"])
    second = fleet.train(rounds=2, pruning=FleetPruning(target=0.75))
    close_round(fleet.database, second, 3, Outcome([], bytes(32), pruned=0.5), START, last=False)
    assert [one.pruned for one in fleet_status(fleet.database, "farm").trainings] == [0.0, 0.5]


def test_what_was_pruned_before_it_was_written_down_is_not_known(fleet, capsys):
    """Of rounds that an older edgefl has closed nothing is claimed, not even that nothing is gone."""
    fleet.push()
    training = fleet.train(rounds=4, pruning=FleetPruning(first=1))
    close_round(fleet.database, training, 1, Outcome([], bytes(32)), START, last=False)
    with transaction(fleet.database):
        fleet.database.execute("UPDATE rounds SET pruned=NULL")
    assert fleet_status(fleet.database, "farm").trainings[0].pruned is None
    assert "pruned" not in trained(capsys)


def test_newest_variant_of_each_profile_is_shown(fleet):
    """A version pushed for one profile is shown beside the older one of the others."""
    fleet.push()
    fleet.push("small", seed=1)
    found = fleet_status(fleet.database, "farm").variants
    assert [(v.profile, v.version) for v in found] == [("big", 1), ("small", 2)]


def test_device_cannot_write_on_the_operators_terminal(fleet, capsys):
    """Control characters in what a device says about itself are shown as text, and every device stays one line."""
    evil = "\x1b[2J\nfleet farm: all is well\r\u202e"
    hear(fleet, "a", State(1, online=True, models=(Installed(evil[:40], 1, evil[:40]),)), Report("m", 1, 1, "ok", error=evil))
    lines = shown(capsys)
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\n" in lines[1]


def test_printable_text_stays_as_it_is() -> None:
    """Letters of any language and the blank are not touched."""
    assert printable("Ölpumpe 3 läuft, 温度 ok") == "Ölpumpe 3 läuft, 温度 ok"
    assert printable("a\tb\x00\x9b") == "a\\tb\\x00\\x9b"


def test_missing_fleet_is_named(tmp_path, capsys):
    """Without a fleet directory the command says how to make one."""
    assert run(["status", "--fleet", str(tmp_path / "none")]) == 2
    assert "edgefl init" in capsys.readouterr().err
