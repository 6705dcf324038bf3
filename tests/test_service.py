"""The server's loop on a broker in memory: what it announces and when, and how a training goes from order to result."""

import numpy as np
import pytest

import toyfleet as toy
from edgefl.identity.repository import appointed
from edgefl.identity.signing import Signer
from edgefl.server.announce import ORDER_SECONDS, RENEW_SECONDS
from edgefl.server.status import fleet_status
from edgefl.store.documents import documents, put_documents
from edgefl.store.ledger import rounds
from edgefl.wire import topics
from edgefl.wire.presence import Report
from toyupdates import MODEL, reference


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def test_pushed_version_is_announced_without_any_training(fleet):
    """A version that was never trained is announced to every profile, and no round is."""
    fleet.serve()
    assert {fleet.announced(profile) for profile in ("big", "small")} == {1}
    assert not [topic for topic in fleet.broker.retained if "/round/" in topic]


def test_whole_training_runs_from_order_to_final_weights(fleet):
    """Orders go out, updates come in, rounds close, and the last order carries the final weights and no task."""
    fleet.train(rounds=3, cohort=4)
    server, devices = fleet.serve(), [fleet.device(name) for name in "abcd"]
    for number in (1, 2, 3):
        for device in devices:
            device.hear()
            assert (device.orders[-1].round, device.orders[-1].task is None) == (number, False)
            device.send(number)
        server.turns(2)
    for device in devices:
        assert device.hear().stored
        assert (device.orders[-1].round, device.orders[-1].task) == (3, None)
    assert [(r.round, r.updates) for r in rounds(fleet.database, 1)] == [(1, 4), (2, 4), (3, 4)]
    assert fleet.rows("SELECT state FROM trainings") == [("finished",)]


def test_result_equals_a_dense_reference_over_two_widths(fleet):
    """What the server makes of sparse updates of two widths is the coverage-weighted mean, discounted by staleness."""
    fleet.train(rounds=2, cohort=3, staleness=3, server_rate=0.5)
    server, (a, b, c, d) = fleet.serve(), [fleet.device(name) for name in "abcd"]
    first = server.training.parent.copy()
    for device in (a, b, c):
        device.send(1)
    server.turns()
    second = reference(first, [("a", "big", 1), ("b", "big", 1), ("c", "small", 1)], number=1, rate=0.5)
    np.testing.assert_allclose(server.training.parent, second, rtol=1e-6, atol=1e-7)
    before = server.training.parent.astype(np.float64)
    d.send(1)  # one round late
    for device in (a, c):
        device.send(2)
    server.turns()
    third = reference(before, [("d", "small", 1), ("a", "big", 2), ("c", "small", 2)], number=2, rate=0.5)
    np.testing.assert_allclose(server.training.parent, third, rtol=1e-6, atol=1e-7)


def test_broker_that_has_lost_everything_gets_everything_again(fleet):
    """After a restart of the broker without persistence all retained announcements are there again, once each."""
    fleet.train(rounds=2, cohort=4)
    server = fleet.serve()
    before = set(fleet.broker.retained)
    fleet.broker.stop(forget=True)
    server.turns(2)
    fleet.broker.start()
    fleet.broker.published.clear()
    server.turns(3)
    assert set(fleet.broker.retained) == before
    assert len(before) == 4 + 4 + len(fleet.profiles)  # manifests and orders, metadata, assignments
    assert set(fleet.broker.published.values()) == {1}


def test_start_announces_each_thing_once(fleet):
    """A server that starts with a connection announces nothing twice."""
    fleet.train(rounds=2, cohort=4)
    fleet.serve(steps=6)
    assert set(fleet.broker.published.values()) == {1}


def test_announcement_without_room_in_the_link_is_made_later(fleet, monkeypatch):
    """An order that the link's queue could not take is announced as soon as there is room."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    monkeypatch.setattr(server.link._outgoing, "_budget", 0)
    device.send(1)
    server.turns(2)
    device.hear()
    assert device.orders[-1].round == 1
    monkeypatch.setattr(server.link._outgoing, "_budget", 1 << 20)
    server.turns(2)
    device.hear()
    assert device.orders[-1].round == 2


def test_standing_order_is_renewed_before_it_expires(fleet):
    """The order of a round that stays open for weeks is signed anew every day."""
    fleet.train(rounds=2, cohort=4, deadline=30 * 86400.0)
    server, device = fleet.serve(), fleet.device("a")
    expires = device.orders[-1].expires
    for _ in range(8):
        server.turns(1, seconds=RENEW_SECONDS)
    server.turns()
    device.hear()
    assert device.orders[-1].expires >= expires + ORDER_SECONDS
    assert device.orders[-1].round == 1


def test_deadline_closes_a_round_while_nobody_speaks(fleet):
    """With a quorum the deadline closes the round without any further message."""
    fleet.train(rounds=2, cohort=4, quorum=2, deadline=60.0)
    server = fleet.serve()
    fleet.device("a").send(1)
    fleet.device("c").send(1)
    server.turns(2)
    assert server.training.state.number == 1
    server.turns(2, seconds=60.0)
    assert server.training.state.number == 2


def test_round_that_nobody_answers_is_opened_to_more(fleet):
    """An order whose deadline has passed without a quorum is said again with twice the fraction."""
    fleet.train(rounds=2, cohort=2, quorum=2, deadline=60.0, fraction=0.25)
    server, device = fleet.serve(), fleet.device("a")
    for fraction in (0.25, 0.5, 1.0):
        server.turns(3)
        device.hear()
        assert device.orders[-1].task.fraction == fraction
        fleet.clock.now += 60.0
    assert len({(order.round, order.weights) for order in device.orders}) == 1


def test_broker_away_does_not_stop_the_deadline(fleet):
    """A round whose deadline passes while the broker is away is closed, and announced when the broker is back."""
    fleet.train(rounds=2, cohort=4, deadline=60.0)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    fleet.broker.stop()
    server.turns(3, seconds=60.0)
    assert server.training.state.number == 2
    fleet.broker.start()
    server.turns(3)
    for _ in range(3):
        device.hear()
    assert device.orders[-1].round == 2


def test_server_leaves_in_order_when_told(fleet):
    """Told to stop, the loop ends after its turn and writes its books."""
    fleet.train(rounds=2, cohort=4)
    server, device = fleet.serve(), fleet.device("a")
    device.say("report", Report(MODEL, 1, 1, "training"))
    questions = iter([False, True])
    server.service.run(lambda: next(questions))
    assert fleet_status(fleet.database, "toy").devices[0].step == "training"


@pytest.mark.parametrize("broker", ["as it was", "restarted from old state"])
def test_the_assignment_of_a_revoked_device_is_taken_back(fleet, broker):
    """What was retained for a device is gone when it is revoked, also at a broker that brings it back from an old state."""
    server, topic = fleet.serve(), topics.assignment("a")
    before = fleet.broker.retained[topic]
    with fleet.database:
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='a'")
    server.turns(3)
    if broker == "restarted from old state":
        fleet.broker.stop(forget=False)
        server.turns(2)
        fleet.broker.retained[topic] = before
        fleet.broker.start()
        server.turns(3)
    assert topic not in fleet.broker.retained
    assert topics.assignment("b") in fleet.broker.retained


def test_a_server_whose_key_was_replaced_signs_no_metadata(fleet):
    """Metadata that is due waits for a server with the new key: signed with the old one nobody would believe it."""
    server = fleet.serve()
    new = Signer.generate()
    with fleet.database:
        known = documents(fleet.database)
        put_documents(fleet.database, appointed(known, "online", [new], 1, [fleet.root_key], fleet.clock.wall()))
        known = documents(fleet.database)
    server.turns(3, seconds=RENEW_SECONDS)
    assert documents(fleet.database) == known
    server.kill()
    fleet.online = new
    fleet.serve()
    assert documents(fleet.database)["timestamp"] != known["timestamp"]
