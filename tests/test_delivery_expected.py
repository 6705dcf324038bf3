"""The server knows who is expected to want a file, and its first block waits for them, but not for others and not for long."""

import pytest

import toyfleet as toy
from edgefl.link.contract import Arrived
from edgefl.server.catalogue import Catalogue
from edgefl.server.expected import Expected
from edgefl.server.gather import PATIENCE
from edgefl.store.database import transaction
from edgefl.wire import topics
from edgefl.wire.blocks import want
from edgefl.wire.presence import State
from toyupdates import MODEL, VARIANTS


@pytest.fixture
def fleet(tmp_path):
    """Ten wide devices and two narrow ones, with one version."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(**{f"w{number}": "big" for number in range(10)}, n0="small", n1="small")
    fleet.push()
    return fleet


@pytest.fixture
def catalogue(fleet):
    """What the fleet is to be served, up to date."""
    catalogue = Catalogue(fleet.database, fleet.blobs, fleet.clock.wall)
    catalogue.refresh()
    return catalogue


def weights(catalogue, profile):
    """The weights of the version for a profile."""
    (manifest,) = [record.manifest for record in catalogue.announced if record.profile == profile]
    return manifest.file("weights")


def born(device, *, online=True, session=1):
    """Say that a device is there, or that it is gone."""
    device.say("state", State(session, online=online))


def test_expected_are_those_that_are_online_and_assigned_the_version(catalogue):
    """Of the devices with the file's profile those that were born and have not died; of another profile's, none."""
    expected = Expected()
    expected.refresh(catalogue)
    ref = weights(catalogue, "big")
    assert expected.of(ref.sha256) == frozenset()
    for name in ("w0", "w1", "n0"):
        expected.heard(name, online=True)
    assert expected.of(ref.sha256) == {"w0", "w1"}
    expected.heard("w1", online=False)
    assert expected.of(ref.sha256) == {"w0"}
    assert expected.of(weights(catalogue, "small").sha256) == {"n0"}
    assert expected.of(bytes(32)) == frozenset()


def test_the_weights_of_a_round_are_expected_by_those_that_train(fleet):
    """The files of an open round are for the devices of the variant."""
    fleet.train()
    catalogue = Catalogue(fleet.database, fleet.blobs, fleet.clock.wall)
    catalogue.refresh()
    expected = Expected()
    expected.refresh(catalogue)
    for name in ("w3", "n1"):
        expected.heard(name, online=True)
    offer = catalogue.trainings[MODEL].offer
    for profile, device in (("big", "w3"), ("small", "n1")):
        assert expected.of(offer.files[VARIANTS[profile][0]].sha256) == {device}


def test_a_revoked_device_is_not_waited_for(fleet, catalogue):
    """Whoever is no device of the fleet any more is not expected."""
    expected = Expected()
    expected.heard("w0", online=True)
    with transaction(fleet.database):
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='w0'")
    catalogue.refresh()
    expected.refresh(catalogue)
    assert expected.of(weights(catalogue, "big").sha256) == frozenset()


@pytest.mark.parametrize("everybody", [True, False])
def test_the_server_sends_when_all_have_asked_or_the_time_is_up(fleet, catalogue, everybody):
    """Ten devices are online. When they have asked, or after the time for nine that did not, each block goes out once."""
    served = fleet.serve()
    ref = weights(catalogue, "big")
    boards = [fleet.device(f"w{number}") for number in range(10)]
    heard = []
    for board in boards:
        born(board)
        board.link.subscribe(topics.block(ref.sha256.hex()))
    served.hear()
    start = fleet.clock.now

    def turn(seconds):
        fleet.clock.now = start + seconds
        served.hear()
        served.hear()
        heard.extend(event for event in boards[0].link.poll(0.0) if isinstance(event, Arrived) and "/block/" in event.topic)

    boards[0].say("want", want(ref, [0]))
    turn(0.0)
    turn(0.2)
    assert not heard
    for board in boards[1:] if everybody else ():
        board.say("want", want(ref, [0]))
    turn(0.21)
    turn(0.22)
    assert len(heard) == everybody
    turn(9 * PATIENCE + 0.01)
    turn(9 * PATIENCE + 0.02)
    assert len(heard) == 1
