"""The server's loop on a broker in memory: what reaches it, what it answers, what it announces, what it counts."""

import msgspec
import numpy as np
import pytest

import toyfleet as toy
from edgefl.identity.repository import appointed
from edgefl.identity.signing import ASSIGNMENT, Signer, verify
from edgefl.server.announce import ORDER_SECONDS, RENEW_SECONDS
from edgefl.server.status import fleet_status
from edgefl.server.variants import load_parent
from edgefl.store.documents import documents, put_documents
from edgefl.store.garbage import pushed_blobs
from edgefl.store.ledger import end_training, rounds
from edgefl.wire import topics
from edgefl.wire.messages import Signed, decode, encode
from edgefl.wire.presence import Installed, Report, State
from edgefl.wire.releases import Assignment, Manifest

MODEL = toy.MODEL


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="big", c="small", d="small")
    fleet.push()
    return fleet


def counters(fleet):
    """The fleet's counters."""
    return fleet_status(fleet.database, "toy").counters


def manifest_version(fleet, profile):
    """The version that devices of a profile are assigned, whose manifest is announced to them."""
    (name,) = [name for name in fleet.profiles if fleet.profiles[name] == profile][:1]
    payload = decode(fleet.broker.retained[topics.assignment(name)], Signed)
    assigned = decode(verify(payload, ASSIGNMENT, fleet.online.public_key), Assignment)
    (one,) = assigned.models
    return decode(fleet.broker.retained[topics.manifest(MODEL, profile, one.version)], Manifest).version


def test_pushed_version_is_announced_without_any_training(fleet):
    """A version that was never trained is announced to every profile, and no round is."""
    fleet.serve()
    assert {manifest_version(fleet, profile) for profile in ("big", "small")} == {1}
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
    second = toy.reference(first, [("a", "big", 1), ("b", "big", 1), ("c", "small", 1)], number=1, rate=0.5)
    np.testing.assert_allclose(server.training.parent, second, rtol=1e-6, atol=1e-7)
    before = server.training.parent.astype(np.float64)
    d.send(1)  # one round late
    for device in (a, c):
        device.send(2)
    server.turns()
    third = toy.reference(before, [("d", "small", 1), ("a", "big", 2), ("c", "small", 2)], number=2, rate=0.5)
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
    other.link.publish(topics.update(name), encode(toy.head_of(name, 1, other.data(1), variant="w1-fp32")))
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
            device.say("want", toy_want(device.orders[-1].weights))
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


def toy_want(ref):
    """A request for the first block of a file."""
    from edgefl.wire.blocks import want

    return want(ref, [0])


def test_wanted_block_of_the_current_round_is_served_and_of_an_old_one_is_not(fleet):
    """Weights of this round and the one before can be fetched; those of earlier rounds are gone, from the disk too."""
    fleet.train(rounds=9, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    refs = []
    for number in range(1, 5):
        device.hear()
        refs.append(device.orders[-1].weights)
        device.send(number)
        server.turns()
    device.hear()
    refs.append(device.orders[-1].weights)
    for ref in refs:
        device.say("want", toy_want(ref))
        server.turns(3)
    sent = [fleet.broker.published[topics.block(ref.sha256.hex())] for ref in refs]
    assert sent == [1, 0, 0, 1, 1]  # the first are the version's own, the manifest lists them
    assert all(fleet.blobs.has(ref.sha256) for ref in refs)  # late updates may be coded with the old ones


def test_disk_and_memory_do_not_grow_with_the_rounds(fleet):
    """After many rounds the blob store, the offer and the stored updates are as large as after a few."""
    fleet.train(rounds=60, cohort=1)
    server, device = fleet.serve(), fleet.device("a")

    def sizes():
        held = sum(len(row[0]) for row in fleet.rows("SELECT data FROM updates"))
        return len(list(fleet.blobs.root.iterdir())), len(server.service._blocks._files), held

    seen = []
    for number in range(1, 41):
        device.send(number)
        server.turns()
        seen.append(sizes())
    assert server.training.state.number == 41
    assert all(max(column[30:]) <= max(column[20:30]) for column in zip(*seen, strict=True))  # how many differences pay varies


def test_push_in_progress_keeps_its_blobs(fleet):
    """What a push has put and not yet entered survives the closing of a round, and is garbage once the push has ended."""
    from edgefl.store.garbage import keeping_new_blobs

    fleet.train(rounds=9, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    with keeping_new_blobs(fleet.blobs):
        sha256 = fleet.blobs.put(b"not yet entered")
        device.send(1)
        server.turns()
        assert fleet.blobs.has(sha256)
    device.send(2)
    server.turns()
    assert server.training.state.number == 3
    assert not fleet.blobs.has(sha256)


def test_damaged_blob_is_not_served_and_does_not_stop_the_server(fleet, caplog):
    """A file whose bytes have changed on disk is withdrawn with a line in the log; rounds go on."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    ref = device.orders[-1].weights
    fleet.blobs.path(ref.sha256).write_bytes(b"\0" * ref.length)
    device.say("want", toy_want(ref))
    server.turns(2)
    assert "damaged" in caplog.text
    assert not fleet.broker.published[topics.block(ref.sha256.hex())]
    device.send(1)
    server.turns()
    assert server.training.state.number == 2


def test_newer_version_for_all_profiles_ends_the_training(fleet):
    """A training whose version nobody is to have any more ends as superseded; its orders are taken back; the next can start."""
    fleet.train(rounds=5, cohort=2)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    assert device.hear().stored
    fleet.push(seed=1)
    server.turns(2)
    assert fleet.rows("SELECT state FROM trainings") == [("superseded",)]
    assert not [topic for topic in fleet.broker.retained if "/round/" in topic]
    device.send(1)  # again: its receipt may have been lost
    server.turns()
    assert device.hear().stored
    device.send(2)
    server.turns()
    assert not device.hear().stored
    fleet.train(rounds=5, cohort=2)
    server.turns(2)
    device.hear()
    assert (device.orders[-1].version, device.orders[-1].round) == (2, 1)


def test_newer_version_for_some_profiles_lets_the_others_train_on(fleet):
    """The training goes on for the profiles that are still announced its version."""
    fleet.train(rounds=5, cohort=1)
    server, device = fleet.serve(), fleet.device("c")
    fleet.push("big", seed=1)
    server.turns(2)
    assert (manifest_version(fleet, "big"), manifest_version(fleet, "small")) == (2, 1)
    device.send(1)
    server.turns()
    assert device.hear().stored
    assert server.training.state.number == 2


def test_stopped_training_announces_the_last_closed_rounds_weights(fleet):
    """After a stop the standing order has no task and the weights that the open round began with; updates are refused."""
    training = fleet.train(rounds=5, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    weights = server.training.offer.files[device.variant]
    end_training(fleet.database, training, "stopped")
    server.turns(2)
    device.send(2)
    server.turns()
    assert not device.hear().stored
    assert (device.orders[-1].task, device.orders[-1].weights) == (None, weights)
    assert fleet.rows("SELECT state FROM trainings") == [("stopped",)]


def test_locked_database_gives_no_receipt_and_loses_nothing(fleet, caplog):
    """While another program holds the database no update is acknowledged; sent again later it counts once."""
    fleet.train(rounds=3, cohort=4)
    server, device = fleet.serve(), fleet.device("a")
    fleet.database.execute("BEGIN IMMEDIATE")
    device.send(1)
    server.turns(2)
    assert device.hear() is None
    assert "locked" in caplog.text
    fleet.database.rollback()
    device.send(1)
    server.turns()
    assert device.hear().stored
    assert fleet.rows("SELECT device, round FROM updates") == [("a", 1)]


def test_full_disk_leaves_the_round_open_until_there_is_room(fleet, monkeypatch, caplog):
    """A round whose weights cannot be written stays open with all its updates, and closes with the same result later."""
    import errno

    fleet.train(rounds=3, cohort=2)
    server, devices = fleet.serve(), [fleet.device(name) for name in "ac"]
    before = server.training.parent.copy()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for device in devices:
            device.send(1)
        server.turns(3)
        assert server.training.state.number == 1
    assert "disk full" in caplog.text
    server.turns()
    assert server.training.state.number == 2
    np.testing.assert_allclose(
        server.training.parent, toy.reference(before, [("a", "big", 1), ("c", "small", 1)], number=1), rtol=1e-6, atol=1e-7
    )


def test_training_that_cannot_be_read_costs_only_its_own_rounds(fleet, caplog):
    """With its weights gone a model's updates get no answer, another model trains on, and all is well when they are back."""
    fleet.push(model="other", seed=3)
    fleet.train(rounds=2, cohort=1)
    fleet.train(model="other", rounds=2, cohort=1)
    (sha256,) = next(iter(fleet.rows("SELECT weights FROM versions WHERE model='toy'")))
    path = fleet.blobs.path(sha256)
    content = path.read_bytes()
    path.unlink()
    server, device = fleet.serve(), fleet.device("a")
    assert "cannot be taken up" in caplog.text
    device.send(1)
    server.turns()
    assert device.hear() is None
    device.send(1, model="other")
    server.turns()
    assert device.hear().stored
    path.write_bytes(content)
    server.turns(2)
    device.send(1)
    server.turns()
    assert (device.hear().model, device.hear().stored) == (MODEL, True)


def test_server_leaves_in_order_when_told(fleet):
    """Told to stop, the loop ends after its turn and writes its books."""
    fleet.train(rounds=2, cohort=4)
    server, device = fleet.serve(), fleet.device("a")
    device.say("report", Report(MODEL, 1, 1, "training"))
    questions = iter([False, True])
    server.service.run(lambda: next(questions))
    assert fleet_status(fleet.database, "toy").devices[0].step == "training"


def test_newest_result_is_a_blob_that_outlives_everything(fleet):
    """The last result of every version, trained or not, stays in the blob store."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    for number in (1, 2):
        device.send(number)
        server.turns()
    fleet.push(seed=1)
    fleet.train(rounds=2, cohort=1)
    server.turns(2)
    device.send(1, version=2)
    server.turns(2)
    ((first,),) = fleet.rows("SELECT result FROM rounds WHERE training=1 AND round=2")
    assert len(load_parent(fleet.blobs, first)) == toy.WIDE.size
    for (sha256,) in fleet.rows("SELECT weights FROM versions"):
        assert fleet.blobs.has(sha256)
    assert msgspec.json.encode(fleet_status(fleet.database, "toy"))


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


def test_a_round_that_closes_right_after_a_push_leaves_its_files_alone(fleet):
    """The garbage of a round is collected before the server has looked at the new version: that version's blobs stay."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    server.turns(1, seconds=0.0)  # it has just looked
    fleet.push(seed=2, hold=True)
    pushed = pushed_blobs(fleet.database)
    device.send(1)
    server.hear()
    assert [one.round for one in rounds(fleet.database, 1)][:1] == [1]
    assert all(fleet.blobs.intact(sha256) for sha256 in pushed)
