"""The line to the claim broker: when it is open, what is a claim there, and what a flood costs."""

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimoffice import HOUR, Office
from edgefl.errors import MessageError
from edgefl.identity.requests import check_answer, make_request
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.server.allowance import MOST_NAMES, Bucket, Buckets
from edgefl.server.claimline import LONGEST_LOOK, ClaimLine
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimReply, ClaimRequest, RenewRequest
from edgefl.wire.messages import decode, encode


@pytest.fixture
def office(tmp_path):
    """A fleet of this test's own."""
    with closing(Office(tmp_path)) as office:
        yield office


def test_the_line_answers_boards_and_ends_with_the_claims(office):
    """It opens when a claim is there, answers on the board's own topic, and closes when no claim is left."""
    broker, opened = MemoryBroker(), []

    def connect():
        opened.append(MemoryLink(broker, "server"))
        return opened[-1]

    line = ClaimLine(office.database, office.desk, connect, wall=office.wall, clock=lambda: office.later)
    line.advance()
    assert opened == []
    token, (key, csr) = office.claim(), make_request("cam-01")
    board = MemoryLink(broker, "0123abcd")
    board.subscribe(topics.claim_reply("0123abcd"))
    office.later = 10.0
    for _ in range(3):
        line.advance()
    board.poll(0)
    board.publish(topics.claim_request("0123abcd"), b"no message")
    board.publish(topics.claim_request("0123abcd"), encode(ClaimRequest("cam-01", token, csr, "rpi-zero-2w")))
    board.poll(0)
    line.advance()
    line.advance()
    (reply,) = [event for event in board.poll(0) if isinstance(event, Arrived)]
    check_answer(decode(reply.payload, ClaimReply).certificate, key, "cam-01", office.authority.root)
    office.later = 3 * HOUR
    line.advance()
    assert len(opened) == 1
    assert not opened[0].connected


def test_a_flood_of_claims_costs_a_bounded_time(office, monkeypatch):
    """While a thousand requests come in between two looks, a look ends in time, and the board among them is answered later."""
    broker, office.later = MemoryBroker(), 1.0
    token, (_, csr) = office.claim(), make_request("cam-01")
    line = ClaimLine(
        office.database, office.desk, lambda: MemoryLink(broker, "server"), wall=office.wall, clock=lambda: office.later
    )
    looked, answer = [], office.desk.answer

    def slowly(request):
        office.later += LONGEST_LOOK / 10
        looked.append(request.token)
        flood(5)
        return answer(request)

    def flood(count):
        for _ in range(count):
            stranger.publish(topics.claim_request("stranger"), encode(ClaimRequest("cam-01", b"x" * 43, csr, "rpi-zero-2w")))
        stranger.poll(0)

    monkeypatch.setattr(office.desk, "answer", slowly)
    line.advance()
    line.advance()
    stranger = MemoryLink(broker, "stranger")
    stranger.poll(0)
    flood(3)
    line.advance()
    assert 10 <= len(looked) <= 100
    stranger.publish(topics.claim_request("stranger"), encode(ClaimRequest("cam-01", token, csr, "rpi-zero-2w")))
    stranger.poll(0)
    monkeypatch.undo()
    line.advance()
    assert office.states() == ["pending"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 3.0), max_size=40))
def test_a_bucket_never_gives_more_than_its_rate(pauses):
    """In any time a bucket gives at most its burst and its rate times that time."""
    bucket, now, given_out = Bucket(2.0, 5.0, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        given_out += bucket.take(now)
        assert given_out <= 5.0 + 2.0 * now


def test_buckets_are_bounded():
    """However many names there are, a bounded number is remembered."""
    buckets = Buckets(1.0, 1.0)
    for number in range(3 * MOST_NAMES):
        assert buckets.take(f"n{number}", 0.0)
    assert len(buckets._buckets) == MOST_NAMES


@pytest.mark.parametrize("message", [b"", b"\x92\xa2ab", encode(ClaimReply()), encode(RenewRequest("ab"))])
def test_a_claim_that_does_not_decode_is_no_claim(message):
    """What is no claim is a named error, and so is what is too long for one."""
    with pytest.raises(MessageError):
        decode(message, ClaimRequest)
    with pytest.raises(MessageError):
        decode(encode(ClaimRequest("cam-01", bytes(65), b"x", "p")), ClaimRequest)


def test_claim_topics_are_read_strictly():
    """Only a request below one name is a claim."""
    assert topics.parse_claim(topics.claim_request("0123abcd")) == "0123abcd"
    for topic in (
        topics.claim_reply("a"),
        "efl/v1/claim/request",
        "efl/v1/claim/A/request",
        "efl/v1/up/a/request",
        f"x/{SERVER}",
    ):
        with pytest.raises(MessageError):
            topics.parse_claim(topic)
