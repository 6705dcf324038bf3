"""Claims as the server judges them: who gets a certificate, once, and what is written down about it."""

from contextlib import closing

import pytest
from cryptography import x509

from claimoffice import DAYS, HOUR, Office
from edgefl.errors import ClaimError, StoreError
from edgefl.identity.requests import check_answer, make_request
from edgefl.server.claims import ALL_REFUSALS_A_MINUTE, REFUSALS_A_MINUTE
from edgefl.store.credentials import find_claim
from edgefl.store.database import transaction
from edgefl.store.registry import get_device


@pytest.fixture
def office(tmp_path):
    """A fleet of this test's own."""
    with closing(Office(tmp_path)) as office:
        yield office


def test_a_claim_gives_a_certificate_for_the_boards_key(office):
    """The chain holds the board's key under its id, ends with the root, and lives as long as the fleet says."""
    token, (key, csr) = office.claim(), make_request("cam-01")
    reply = office.ask(token, csr)
    assert reply.code == ""
    serial = check_answer(reply.certificate, key, "cam-01", office.authority.root)
    own = x509.load_pem_x509_certificates(reply.certificate)[0]
    assert (own.not_valid_after_utc - own.not_valid_before_utc).days == DAYS + 1
    assert office.states() == ["pending"]
    assert get_device(office.database, "cam-01").certificate == serial
    assert [event for event, _ in office.audit()] == ["claim-opened", "certificate-issued"]


def test_the_token_is_nowhere_in_the_fleet(office):
    """The fleet keeps a hash: neither database nor any other file of it holds the token."""
    token = office.claim()
    assert len(token) >= 22
    for path in office.fleet.path.rglob("*"):
        if path.is_file():
            assert token not in path.read_bytes(), path


def test_a_lost_reply_is_given_again_and_another_request_is_not(office):
    """The same request gets the same certificate, also after the claim's end; a second key gets nothing."""
    token, (_, csr), (_, other) = office.claim(), make_request("cam-01"), make_request("cam-01")
    first = office.ask(token, csr)
    office.later = 2 * HOUR
    assert office.ask(token, csr) == first
    refused = office.ask(token, other)
    assert (refused.certificate, refused.code) == (b"", "used")
    assert office.states() == ["pending"]
    assert office.audit()[-1][0] == "claim-refused"
    assert office.audit()[-1][1].startswith("used: ")


def test_a_wrong_token_and_an_unknown_id_look_the_same(office):
    """Who has no token cannot find out which ids exist."""
    office.claim()
    wrong = office.ask(b"x" * 43, make_request("cam-01")[1])
    unknown = office.ask(b"x" * 43, make_request("cam-99")[1], device="cam-99")
    never = office.ask(office.claim("cam-02"), make_request("cam-01")[1])
    assert wrong == unknown == never
    assert wrong.code == "token"
    assert office.audit("cam-99")[0][0] == "claim-refused"


def test_an_expired_claim_is_refused(office):
    """After its end a claim gives nothing; a new one for the same board does, and the old token stays void."""
    token, (_, csr) = office.claim(), make_request("cam-01")
    office.later = HOUR + 1
    assert office.ask(token, csr).code == "expired"
    again = office.claim(again=True, claim_seconds=3 * HOUR)
    assert office.ask(token, csr).code == "token"
    assert office.ask(again, csr).code == ""


def test_a_claim_is_bound_to_its_profile(office):
    """Another profile than the claim's is refused."""
    token, (_, csr) = office.claim(), make_request("cam-01")
    assert office.ask(token, csr, profile="rpi-4b-2gb").code == "profile"
    assert office.ask(token, csr).code == ""


def test_a_revoked_device_claims_nothing(office):
    """A device that was revoked while its claim was open stays out."""
    token = office.claim()
    with transaction(office.database):
        office.database.execute("UPDATE devices SET revoked = 1.0")
    assert office.ask(token, make_request("cam-01")[1]).code == "revoked"


def test_a_claim_and_its_certificate_count_together_or_not_at_all(office, monkeypatch):
    """When the certificate cannot be entered, the claim is still open, and nothing was given out."""
    token, (_, csr) = office.claim(), make_request("cam-01")

    def full(*_):
        raise StoreError("disk full")

    monkeypatch.setattr("edgefl.server.claims.add_certificate", full)
    with pytest.raises(StoreError):
        office.ask(token, csr)
    monkeypatch.undo()
    assert find_claim(office.database, "cam-01").used is None
    assert office.ask(token, csr).code == ""


def test_refusals_are_bounded_and_do_not_shut_the_board_out(office):
    """Of many wrong tokens a few are answered and written down; the right one is answered in the middle of them."""
    token, (_, csr) = office.claim(), make_request("cam-01")
    answers = [office.ask(b"wrong" * 8, csr) for _ in range(50)]
    assert sum(answer is not None for answer in answers) == REFUSALS_A_MINUTE
    assert len(office.audit()) == 1 + REFUSALS_A_MINUTE
    assert office.ask(token, csr).code == ""


def test_refusals_of_many_names_are_bounded_too(office):
    """Whoever makes up a new id each time fills the log no faster, and keeps no board from its certificate."""
    token, (_, csr) = office.claim(), make_request("cam-01")
    answers = [office.ask(b"wrong" * 8, csr, device=f"made-up-{number}") for number in range(200)]
    assert sum(answer is not None for answer in answers) == ALL_REFUSALS_A_MINUTE
    (rows,) = office.database.execute("SELECT COUNT(*) FROM audit WHERE event = 'claim-refused'").fetchone()
    assert rows == ALL_REFUSALS_A_MINUTE
    assert office.ask(token, csr).code == ""


def test_a_new_claim_takes_the_place_of_the_old_certificate(office):
    """A board that was lost for long claims anew; what it had before is replaced, and renewals go on from the new one."""
    first = office.ask(office.claim(), make_request("cam-01")[1])
    second = office.ask(office.claim(again=True), make_request("cam-01")[1])
    assert first.certificate != second.certificate
    assert office.states() == ["replaced", "pending"]


def test_errors_of_claims_carry_their_code():
    """The code of the reply is kept apart from the words."""
    assert ClaimError("used", "the claim was used").answer == "used"
