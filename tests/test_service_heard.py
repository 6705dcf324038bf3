"""What reaches the server: garbage, strangers and floods cost nothing, and every byte is in the books."""

import pytest

import toyfleet as toy
from edgefl.server.status import fleet_status
from edgefl.wire import topics
from edgefl.wire.blocks import want
from edgefl.wire.messages import encode
from edgefl.wire.presence import Installed, Report, State
from toyupdates import MODEL, head_of


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def counters(fleet):
    """The fleet's counters."""
    return fleet_status(fleet.database, "toy").counters


GARBAGE = {
    "empty": b"",
    "text": b"hello",
    "nested": b"\x91" * 100_000,
    "long": bytes(128 * 1024),
    "another message": encode(State(1, online=True)),
    "truncated": encode(Report("toy", 1, 1, "training"))[:-3],
}


@pytest.mark.parametrize("kind", ["state", "want", "update", "report", "nonsense"])
@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_any_topic_is_dropped(fleet, kind, payload):
    """Whatever bytes arrive on whatever topic, the server goes on, and a device's round still works."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    device.say(kind, payload)
    server.hear()
    device.send(1)
    server.turns()
    assert device.hear().stored
    believed = kind == "state" and payload in (b"", GARBAGE["another message"])
    assert counters(fleet).get("messages refused", 0) == (0 if believed else 1)


@pytest.mark.parametrize("how", ["unknown", "revoked", "the server"])
def test_message_of_no_valid_device_is_dropped(fleet, how):
    """An unknown or revoked device, or somebody in the server's name, changes nothing and gets no answer."""
    fleet.train(rounds=2, cohort=1)
    server = fleet.serve()
    name = {"unknown": "x", "revoked": "a", "the server": "edgefl-server"}[how]
    if how == "revoked":
        with fleet.database:
            fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='a'")
        server.turns()
    other = fleet.device("b")
    other.link.publish(topics.update(name), encode(head_of(name, 1, other.data(1), variant="w1-fp32")))
    other.hear()
    server.turns(2)
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]
    assert counters(fleet)["messages refused"] == 1
    assert topics.receipt(name) not in fleet.broker.published


def test_flood_costs_a_bounded_number_of_rows_and_lines(fleet, caplog):
    """Thousands of reports, births and nonsense of one device are one row of presence and a few lines in the log."""
    server, device = fleet.serve(), fleet.device("a")
    for n in range(700):
        device.say("report", Report("toy", 1, n, "failed", error=f"no {n}"))
        device.say("state", State(n, online=True, models=(Installed("toy", 1, "w1-fp32"),)))
        device.say("want", b"%d" % n)
    changes = fleet.database.execute("PRAGMA data_version").fetchone()[0]
    caplog.clear()
    server.turns(3)
    assert len(caplog.records) < 40
    assert fleet.database.execute("PRAGMA data_version").fetchone()[0] != changes
    status = fleet_status(fleet.database, "toy").devices[0]
    assert (status.round, status.error, status.models) == (699, "no 699", ["toy@1 w1-fp32"])
    assert counters(fleet)["messages refused"] == 700


def test_every_payload_byte_is_in_the_books(fleet):
    """Rounds and counters together hold exactly the bytes that the server's link has received and sent."""
    fleet.train(rounds=2, cohort=2)
    server, devices = fleet.serve(), [fleet.device(name) for name in "ac"]
    for number in (1, 2):
        for device in devices:
            device.hear()
            device.say("state", State(1, online=True, models=(Installed(MODEL, 1, device.variant),)))
            device.say("report", Report(MODEL, 1, number, "training"))
            device.say("want", want(device.orders[-1].weights, [0]))
            device.say("report", b"nonsense")
            device.say("update", b"")
            device.send(number)
            device.send(number)
        server.turns(3)
    server.turns(2)
    status, traffic = fleet_status(fleet.database, "toy"), server.link.traffic
    up = sum(r.uplink_bytes for r in status.trainings[0].rounds) + status.counters["uplink bytes outside of trainings"]
    down = sum(r.downlink_bytes for r in status.trainings[0].rounds) + status.counters["downlink bytes outside of trainings"]
    assert (up, down) == (traffic.received_bytes, traffic.sent_bytes)
    assert all(r.uplink_bytes > 0 and r.downlink_bytes > 0 for r in status.trainings[0].rounds)
