"""A broker that dies, forgets, overflows, limits, and is met by a whole fleet at once. Real Mosquitto; times are scaled down."""

import random
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

import fieldboard as field
import toyfleet
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.device import rounds
from edgefl.errors import LinkError
from edgefl.link.backoff import Backoff
from edgefl.link.memory import MemoryLink
from edgefl.names import SERVER
from edgefl.wire import topics
from edgefl.wire.files import Want
from edgefl.wire.messages import MAX_PACKET, encode
from edgefl.wire.presence import Report, State

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
KIB = 1024


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """The fleet of all tests in here."""
    return field.found(tmp_path_factory.mktemp("field"))


@pytest.fixture
def place(fleet, tmp_path, monkeypatch):
    """Makes a field; it is cleared afterwards."""
    made = []

    def make(**options):
        made.append(field.Field(tmp_path, fleet, monkeypatch, **options))
        return made[0]

    yield make
    for one in made:
        one.close()


@pytest.mark.broker
@needs_mosquitto
def test_a_broker_that_has_forgotten_everything_is_told_again(place):
    """SIGKILL in the middle of a download, all its state lost: both ends subscribe again, the download ends, no file twice."""
    there = place()
    board = there.start_board()
    there.proxy.rate, there.proxy.mode = 256 * KIB, "throttle"
    before = there.proxy.passed[1]
    there.office.manifest(graphs={"train": np.random.default_rng(0).bytes(384 * KIB), "eval": b"eval", "infer": b"infer"})
    there.wait(lambda: there.proxy.passed[1] > before + 100 * KIB)
    there.kill_broker()
    there.wait(lambda: not board.link.connected)
    there.office.states.clear()
    there.start_broker(fresh=True)
    there.wait(lambda: board.active() == 1)
    there.wait(lambda: any(state.online and state.models for state in there.office.states))
    assert there.proxy.passed[1] - before < 2 * 384 * KIB


@pytest.mark.broker
@needs_mosquitto
def test_an_update_that_the_brokers_full_queue_dropped_arrives_all_the_same(place, monkeypatch):
    """The server is away, 1200 messages fill the broker's queue of 1000, the update is dropped in silence: it is sent again."""
    monkeypatch.setattr(rounds, "RESEND_AFTER", 2.0)
    there = place()
    board, office = there.start_board(), there.office
    office.manifest()
    there.wait(lambda: board.active() == 1)
    office.receipts = "silent"
    office.order(1)
    there.wait(lambda: office.updates[1])
    there.proxy.refuse = True
    there.proxy.cut()
    there.wait(lambda: not board.link.connected)
    office.updates.clear()  # as if it had been lost on the way
    office.link.close(1.0)  # its session stays with the broker, which queues for it
    neighbour, word = there.link(field.OTHER, direct=True), encode(Report("toy", 1, 1, "fetching"))
    for _ in range(1200):
        neighbour.publish(topics.report(field.OTHER), word)
    until(lambda: neighbour.poll(0.02) is not None and neighbour.outgoing == 0)  # every one was acknowledged
    sent = board.link.traffic.sent_bytes
    there.proxy.refuse = False
    until(lambda: board.link.traffic.sent_bytes > sent + len(word) and board.link.connected and board.link.outgoing == 0)
    office.receipts = "store"
    number = len(office.reports)
    office.link = there.link(SERVER, clean_session=False)
    office.link.subscribe(topics.ALL_UP)
    there.wait(lambda: len(office.reports) - number >= 900)
    assert not office.updates[1]  # it was among what the broker dropped
    there.wait(lambda: office.updates[1] and board.session.work is None)
    assert len(office.reports) - number < 1200
    assert len({head.sha256 for head, _ in office.updates[1]}) == 1


def until(happened, seconds=120.0):
    """Wait for it without the server's help."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.broker
@needs_mosquitto
def test_what_is_too_large_is_refused_here_and_what_the_broker_drops_blocks_nothing(place):
    """An oversize message never enters the queue; one above the broker's own limit is given up by it; the queue drains."""
    there = place(limits={"message_size_limit 131072": "message_size_limit 20000"})
    link = there.link(field.OTHER, direct=True)
    with pytest.raises(LinkError, match="too large"):
        link.publish(topics.report(field.OTHER), bytes(MAX_PACKET + 1))
    assert link.outgoing == 0
    link.publish(topics.report(field.OTHER), bytes(100_000))
    link.publish(topics.report(field.OTHER), encode(Report("toy", 1, 7, "trained")))
    end = time.monotonic() + 120.0
    while (link.outgoing or not there.office.reports) and time.monotonic() < end:
        link.poll(0.02)
        there.office.turn()
    assert link.outgoing == 0
    assert [report.round for report in there.office.reports] == [7]


@pytest.mark.broker
@needs_mosquitto
def test_the_server_comes_back_to_a_broker_that_has_forgotten_its_session(place):
    """Everything that a device says after the broker's loss of memory reaches the server, which had kept a session there."""
    there = place()
    there.kill_broker()
    there.start_broker(fresh=True)
    there.wait(lambda: not there.office.link.connected)
    there.wait(lambda: there.office.link.connected)
    there.start_board()
    there.wait(lambda: any(state.online for state in there.office.states))


def test_five_hundred_devices_do_not_come_back_in_one_wave():
    """Their first attempts after a loss spread over half a second, the fifth ones over eight: no tenth of that sees a third."""
    for failures in (1, 5):
        attempts = []
        for seed in range(500):
            backoff = Backoff(random.Random(seed))
            for _ in range(failures):
                backoff.failed(100.0)
            attempts.append(backoff.due - 100.0)
        span = 0.5 * 2.0 ** (failures - 1)
        slots = Counter(int(10.0 * attempt / span) for attempt in attempts)
        assert len(slots) == 10
        assert max(slots.values()) < 500 / 3


def test_the_servers_memory_is_bounded_when_five_hundred_devices_come_at_once(tmp_path):
    """500 births and 4000 requests in one turn take the server less than 8 MiB, most of which it gives back."""
    fleet = toyfleet.ToyFleet(tmp_path)
    names = [f"cam-{number:03}" for number in range(500)]
    fleet.provision(**dict.fromkeys(names, "big"))
    fleet.push()
    served = fleet.serve()
    (ref,) = {ref for _, ref in served.service._catalogue.files().values() if ref.role == "weights" and ref.length > 400}
    crowd = MemoryLink(fleet.broker, "cam-000")
    crowd.poll(0.0)
    tracemalloc.start()
    try:
        for name in names:
            crowd.publish(topics.state(name), encode(State(1, online=True)))
            for _ in range(8):
                crowd.publish(topics.want(name), encode(Want(ref.sha256, 0, b"\xff")), qos=0)
        crowd.poll(0.0)
        before = tracemalloc.get_traced_memory()[0]
        served.turns(4)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        served.kill()
    assert peak - before < 8 << 20
    assert now - before < 2 << 20
    assert len(fleet.rows("SELECT device FROM presence WHERE online")) == 500
