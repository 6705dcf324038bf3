"""A board behind a bad link: flapping, dead, reset, half-open and slow. Real broker, TLS and timers; times are scaled down."""

import time

import numpy as np
import pytest

import fieldboard as field
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.device import rounds
from toytrainer import delta_of

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed"),
]
KIB = 1024
MOSQUITTO_LOOKS = 6.0
"""Seconds between two of its looks for dead clients (5 in version 2.0), and a little more."""
BUSY = 10.0
"""Seconds by which a busy machine may be late; without pings TCP would notice in a quarter of an hour."""


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


def graphs(kib):
    """Files of which one is so large."""
    return {"train": np.random.default_rng(0).bytes(kib * KIB), "eval": b"eval", "infer": b"infer"}


def fetching(there, kib, rate):
    """A board that has begun to fetch a version over a link of so many bytes a second."""
    there.start_board()
    there.proxy.rate, there.proxy.mode = rate, "throttle"
    before = there.proxy.passed[1]
    there.office.manifest(graphs=graphs(kib))
    there.wait(lambda: there.proxy.passed[1] > before + 40 * KIB)
    return there


def test_a_link_that_flaps_five_times_delivers(place):
    """Cut five times within one download: the version is active in the end, and hardly a block has come twice."""
    there = fetching(place(), 512, 256 * KIB)
    for _ in range(5):
        there.wait(lambda: there.board.link.connected)
        there.work(0.25)
        before = len(there.losses)
        there.proxy.cut()
        there.wait(lambda before=before: len(there.losses) > before or not there.board.link.connected)
    there.wait(lambda: there.board.active() == 1)
    assert there.proxy.connections >= 6
    assert there.proxy.passed[1] < 2 * 512 * KIB


def test_a_black_hole_is_survived(place):
    """Everything is swallowed for longer than the keepalive, then the network is back: the download ends."""
    there = fetching(place(keepalive=1), 256, 128 * KIB)
    there.proxy.mode = "stall"
    there.wait(lambda: there.losses)
    there.work(1.0)
    assert there.board.active() == 0
    there.proxy.cut()  # what the hole has swallowed does not come out again
    there.proxy.mode = "forward"
    there.wait(lambda: there.board.active() == 1)


def test_a_reset_connection_goes_on(place, monkeypatch):
    """RST in the middle of a download and of an update: both arrive."""
    monkeypatch.setattr(rounds, "RESEND_AFTER", 1.0)
    there = fetching(place(), 256, 256 * KIB)
    there.proxy.reset()
    there.wait(lambda: there.board.active() == 1)
    there.office.receipts = "silent"
    there.office.order(1)
    there.wait(lambda: there.office.updates[1])
    there.office.receipts = "store"
    there.proxy.reset()  # before the receipt: the connection brings the update again, and the server's answer ends it
    there.wait(lambda: there.board.session.work is None)
    assert len({head.sha256 for head, _ in there.office.updates[1]}) == 1
    assert not (there.board.folder / "outbox").exists()


@pytest.mark.slow
def test_a_peer_that_vanishes_is_noticed(place):
    """No FIN, no RST: the broker declares the device dead after 1.5 keepalives, the device finds out within 2 and comes back."""
    keepalive = 2
    there = place(keepalive=keepalive)
    there.start_board()
    there.wait(lambda: any(state.online for state in there.office.states))
    there.office.states.clear()
    there.proxy.mode, began = "stall", time.monotonic()
    took = there.wait(lambda: any(not state.online for state in there.office.states))
    assert took < 1.5 * keepalive + MOSQUITTO_LOOKS + BUSY
    there.wait(lambda: there.losses)
    assert there.losses[0][0] - began < 2 * keepalive + BUSY
    there.proxy.mode = "forward"
    there.wait(lambda: there.board.link.connected and any(state.online for state in there.office.states))


@pytest.mark.slow
def test_a_link_slower_than_its_keepalive_keeps_its_connection(place):
    """16 KB/s and a keepalive of 1 s: a block takes twice as long as that and a file longer still, on one connection."""
    there = fetching(place(keepalive=1), 48, 16_000)
    there.wait(lambda: there.board.active() == 1)
    assert there.proxy.connections == 1
    assert not there.losses


def test_refused_connections_are_tried_again(place, monkeypatch):
    """Every connection is turned away for a while; the update that was trained meanwhile arrives afterwards, once settled."""
    monkeypatch.setattr(rounds, "RESEND_AFTER", 0.5)
    there = place()
    board = there.start_board()
    there.office.manifest()
    there.wait(lambda: board.active() == 1)
    there.office.receipts = "silent"
    there.office.order(1)
    there.wait(lambda: there.office.updates[1])
    there.proxy.refuse = True
    there.proxy.cut()
    there.wait(lambda: not board.link.connected)
    there.work(1.0)
    there.office.receipts, there.proxy.refuse = "store", False
    there.wait(lambda: board.session.work is None)
    np.testing.assert_allclose(there.office.sent(1)[0] + board.residual(), delta_of(1), atol=1e-4)


def test_a_birth_follows_every_connection(place):
    """After a cut the broker has published the will; the next connection's birth replaces it, with the same session number."""
    there = place()
    there.start_board()
    there.wait(lambda: there.office.states)
    there.proxy.reset()
    there.wait(lambda: not all(state.online for state in there.office.states) and there.office.states[-1].online)
    there.work(0.5)
    assert there.office.states[-1].online
    assert len({state.session for state in there.office.states}) == 1
