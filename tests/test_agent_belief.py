"""What a board believes: forgeries, replays, noise and news of other versions on a broker in memory."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefl.identity.repository import appointed
from edgefl.identity.signing import Signer
from edgefl.link.contract import Arrived
from edgefl.link.memory_broker import MemoryBroker
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.rounds import Receipt
from toyagent import scripted, trained
from toyclock import START, Clock
from toyoffice import DEVICE, MODEL, PROFILE, VARIANT, Office


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    with scripted(tmp_path, monkeypatch) as board:
        yield board


@pytest.mark.parametrize(
    ("words", "announce"),
    [
        ("not trusted here", lambda o: o.assign(2, signer=Signer.generate())),
        ("another purpose", lambda o: o.say(topics.assignment(DEVICE), encode(o.online.sign("round", b"x")))),
        ("older assignment", lambda o: o.assign(2, counter=0)),
        ("another device", lambda o: o.assign(2, device="cam-02")),
        ("assignment has expired", lambda o: o.assign(2, expires=int(START) - 1)),
        ("has expired", lambda o: o.manifest(2, expires=int(START) - 1)),
        (
            "not the one",
            lambda o: (o.manifest(2, announce=False), o.manifest(2), o.say(topics.manifest(MODEL, PROFILE, 2), b"\x00")),
        ),
        ("does not fit this device", lambda o: o.manifest(2, graphs={"train": bytes(2 << 20)})),
        ("another engine", lambda o: o.manifest(2, engine="ort-training")),
        ("metadata cannot be believed", lambda o: o.say(topics.metadata("timestamp"), b"{")),
        ("unknown role", lambda o: o.say(topics.metadata("evil"), b"{}")),
        ("does not decode", lambda o: o.say(topics.assignment(DEVICE), b"\x00")),
        ("not trusted here", lambda o: o.order(2, signer=Signer.generate())),
        ("has expired", lambda o: o.order(2, expires=int(START) - 1)),
        ("another variant", lambda o: o.order(2, announce=False) and o.say(*wrong_variant(o))),
        ("too large", lambda o: o.order(2, weights=o.offer("weights", bytes(10_000)))),
        ("does not decode", lambda o: o.say(topics.round_order(MODEL, VARIANT), b"\x93\x01")),
    ],
)
def test_what_is_not_believed_changes_nothing_and_is_told_once(board, words, announce):
    """Garbage and forgeries, retained and heard again on every connection: one report, and the old version serves on."""
    board.office.manifest()
    board.start().run(board.active)
    announce(board.office)
    board.run(board.office.errors, turns=2000)
    for _ in range(5):
        board.link.drop()
        board.turns(4, seconds=0.5)
    assert all(words in error for error in board.office.errors())
    assert len(board.office.errors()) == 1
    assert (board.active(), board.session.installing, board.session.work) == (1, None, None)


def wrong_variant(office):
    """An order for another variant, on our variant's topic."""
    _, payload = office.order(2, variant="w0.5-int8", announce=False)
    return topics.round_order(MODEL, VARIANT), payload


def test_orders_of_another_version_are_no_news(board):
    """The retained order of the version before stays silent after a push, on every connection; a new order is followed."""
    board.office.manifest()
    trained(board.start(), 7)
    board.office.manifest(2)
    board.run(lambda: board.active() == 2)
    board.link.drop()
    board.turns(5)
    assert board.office.errors() == []
    board.office.order(1, version=2)
    board.run(lambda: board.office.updates[1])


def test_a_changed_variant_changes_what_is_listened_to(board):
    """After a push that changes the structure, orders of the old structure no longer arrive."""
    board.office.manifest()
    board.start().run(board.active)
    board.office.manifest(2, variant="w0.5-int8")
    board.run(lambda: board.active() == 2)
    board.office.order(4)
    board.turns(5)
    assert board.office.errors() == []
    assert board.session.work is None


def test_a_replaced_online_key_is_no_scandal(board):
    """While a version with another key is on its way its orders are not believed yet, not reported, and followed afterwards."""
    board.office.manifest()
    board.start().run(board.active)
    board.office.serves = False
    office, new = board.office, Signer.generate()
    office.publish(appointed(office.documents, "online", [new], 1, [office.root], START))
    office.online = new
    board.office.manifest(2)
    board.office.order(1, version=2)
    board.turns(20)
    board.office.serves = True
    board.run(lambda: board.office.updates[1], turns=2000)
    assert board.office.errors() == []


def test_a_replayed_lower_version_is_ignored(board):
    """A manifest that was good once does not bring the old version back."""
    _, old = board.office.manifest(1)
    (old_assignment,) = (board.broker.retained[topic] for topic in board.broker.retained if topic == topics.assignment(DEVICE))
    board.office.manifest(2)
    board.start().run(board.active)
    board.office.say(topics.assignment(DEVICE), old_assignment)
    board.office.say(topics.manifest(MODEL, PROFILE, 1), old)
    board.turns(10)
    assert (board.active(), board.session.installing) == (2, None)


def test_a_replay_finds_no_gap_while_a_damaged_version_is_repaired(board):
    """With the active version damaged and the files of the old one still there, the old manifest is not installed instead."""
    _, old = board.office.manifest(1, announce=False)
    manifest, _ = board.office.manifest(2, announce=False)
    blobs = BlobStore(board.state / "blobs")
    board.office.manifest(2)
    board.start().run(board.active)
    board.lose()
    for _, data in board.office.files.values():
        blobs.put(data)
    blobs.path(manifest.file("train").sha256).write_bytes(b"damaged")
    board.office.serves = False
    board.office.say(topics.manifest(MODEL, PROFILE, 1), old)
    board.start().turns(50)
    assert board.active() == 0
    board.office.serves = True
    board.run(lambda: board.active() == 2, turns=3000, seconds=0.5)


KINDS = ("manifest/toy/toy-profile", "round/toy/w1-fp32", "block/0123456789abcdef", "manifest/x", "nonsense/a/b")
_NOISE = Office(MemoryBroker(), Clock())
_SIGNED = (
    _NOISE.manifest(announce=False)[1],
    _NOISE.order(1, announce=False)[1],
    encode(Receipt("toy", 1, 1, bytes(32), stored=True)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.one_of(st.binary(max_size=200), st.sampled_from(_SIGNED)), st.integers(0, 10**6))
def test_no_message_ends_the_agent(board, kind, payload, place):
    """Noise, foreign signatures and cut messages on every topic: the agent lives, and believes none of them."""
    if board.agent is None:
        board.start()
    topic = topics.receipt(DEVICE) if place % 7 == 0 else f"efl/v1/all/{kind}"
    for data in (payload, payload[: place % (len(payload) + 1)]):
        board.agent._on_link(Arrived(topic, data, retained=True))
    board.turn()
    assert not board.agent._models
