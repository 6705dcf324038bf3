"""Robust trainings in the server: devices that harm are named and excluded, operators decide, and a killed server goes on."""

import json

import numpy as np
import pytest

import toyfleet as toy
from edgefl.cli.main import run
from edgefl.codec.update import encode as encode_update
from edgefl.server.founding import create_fleet
from edgefl.server.status import fleet_status
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import rounds
from edgefl.store.registry import Device, add_devices
from edgefl.store.standings import exclude, excluded, record_scores, reinstate, standings
from edgefl.store.versions import get_version, participants
from toyupdates import MODEL, WIDE

GOOD, BAD = "abcdefgh", "yz"


@pytest.fixture
def fleet(tmp_path):
    """A fleet of ten wide devices with one version."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(**dict.fromkeys(GOOD + BAD, "big"))
    fleet.push()
    return fleet


def update(device, number):
    """What honest devices have in common, or its opposite, as an encoded update."""
    wanted = np.random.default_rng(number).standard_normal(WIDE.size) * 0.01
    own = np.random.default_rng([number, ord(device)]).standard_normal(WIDE.size) * 0.002
    vector = (-wanted if device in BAD else wanted) + own
    return encode_update(vector.astype(np.float32), sparsity=0.5, bits=1, rng=np.random.default_rng(0)).data


def play(server, devices, numbers):
    """Let the devices train these rounds."""
    for number in numbers:
        for device in devices:
            device.send(number, data=update(device.name, number))
        server.turns(2)


@pytest.mark.parametrize("aggregator", ["mean", "trimmed-mean", "multi-krum"])
def test_devices_that_harm_are_excluded_and_told_so(fleet, aggregator):
    """After a few rounds the attackers' updates are refused with a reason; honest devices are trusted, and the rounds go on."""
    fleet.train(rounds=8, cohort=8, quorum=8, aggregator=aggregator, exclude=0.5, clip=2.0, staleness=0)
    server, devices = fleet.serve(), [fleet.device(name) for name in BAD + GOOD]
    play(server, devices, range(1, 7))
    found = standings(fleet.database)
    assert {name for name, standing in found.items() if standing.excluded} == set(BAD)
    assert all(found[name].by == "scores" for name in BAD)
    assert min(found[name].standing for name in GOOD if name in found) > 0.6
    receipt = devices[0].hear()
    assert not receipt.stored
    assert "excluded" in receipt.reason
    assert rounds(fleet.database, 1)[-1].round == 7


def test_exclusion_survives_a_restart_and_ends_on_an_operators_word(fleet):
    """A new server process refuses as the old one did; once reinstated the device counts again."""
    fleet.train(rounds=9, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    exclude(fleet.database, "a", 1.0)
    device.send(1)
    server.turns()
    assert not device.hear().stored
    server.kill()
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    assert not device.hear().stored
    reinstate(fleet.database, "a")
    device.send(1)
    server.turns()
    assert device.hear().stored


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])
def test_a_killed_server_steps_as_if_it_had_not_been(fleet, tmp_path, optimizer):
    """With a restart after every round the weights are bit by bit those of a server that was never killed."""
    other = tmp_path / "other"
    other.mkdir()
    twin = toy.ToyFleet(other)
    twin.provision(a="big")
    twin.push()
    results = []
    for one, killed in ((fleet, False), (twin, True)):
        one.train(rounds=4, cohort=1, optimizer=optimizer, server_rate=0.1)
        server, device = one.serve(), one.device("a")
        for number in range(1, 5):
            device.send(number)
            server.turns()
            if killed:
                server.kill()
                server, device = one.serve(), one.device("a")
        results.append([bytes(row.result) for row in rounds(one.database, 1)])
    assert results[0] == results[1]
    assert len(set(results[0])) == 4


def test_scores_never_reinstate_and_operators_words_stand(fleet):
    """A good round does not bring an excluded device back, and scores do not overwrite who excluded it."""
    exclude(fleet.database, "a", 5.0)
    with fleet.database:
        record_scores(fleet.database, {"a": 1.0, "b": 0.0}, 0.8, 9.0, attackers=0.2)
    assert excluded(fleet.database, "a").by == "operator"
    assert excluded(fleet.database, "b").by == "scores"
    with fleet.database:
        record_scores(fleet.database, {"b": 1.0}, 0.5, 10.0, attackers=0.2)
    assert excluded(fleet.database, "b").excluded == 9.0


def test_status_shows_who_is_excluded_and_the_next_cohort_does_without(fleet):
    """An excluded device is marked, and is not among those that a new training waits for; reinstated it is."""
    version = get_version(fleet.database, MODEL, 1)
    able = participants(fleet.database, version)
    with fleet.database:
        record_scores(fleet.database, {"b": 0.0}, 0.0, 1.0, attackers=0.2)
    exclude(fleet.database, "a", 1.0)
    shown = {device.id: (device.standing, device.excluded) for device in fleet_status(fleet.database, "toy").devices}
    assert (shown["a"], shown["b"], shown["c"]) == ((1.0, True), (pytest.approx(0.7), False), (1.0, False))
    assert participants(fleet.database, version) == able - 1
    reinstate(fleet.database, "a")
    assert participants(fleet.database, version) == able


def test_operators_see_and_change_it_on_the_command_line(tmp_path, capsys):
    """`devices exclude`, `ls`, `show` and `reinstate` tell one story; an unknown device is refused."""
    create_fleet(tmp_path / "fleet", name="fleet", host="127.0.0.1", port=8883)
    database = open_database(Fleet.open(tmp_path / "fleet").database)
    with database:
        add_devices(database, [Device("cam-01", "rpi-5-8gb", "00", 1.0)])
    database.close()

    def told(*arguments):
        code = run(["devices", *arguments, "--fleet", str(tmp_path / "fleet")])
        return code, capsys.readouterr()

    assert told("exclude", "cam-01")[0] == 0
    assert "excluded" in told("ls")[1].out
    assert run(["status", "--fleet", str(tmp_path / "fleet")]) == 0
    assert "excluded" in capsys.readouterr().out
    assert json.loads(told("show", "cam-01", "--json")[1].out)["excluded_by"] == "operator"
    assert told("reinstate", "cam-01")[0] == 0
    assert "excluded" not in told("ls")[1].out
    code, output = told("exclude", "nobody")
    assert code != 0
    assert "no device" in output.err
