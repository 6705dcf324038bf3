"""Claims and renewals as the server judges them: every way to ask wrongly, and what is written down about it."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import ClaimError, MessageError, SignatureError, StoreError
from edgefl.identity.requests import check_answer, make_request, read_request
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryBroker
from edgefl.names import SERVER
from edgefl.server.allowance import MOST_NAMES, Bucket, Buckets
from edgefl.server.claimline import LONGEST_LOOK, ClaimLine
from edgefl.server.claims import ALL_REFUSALS_A_MINUTE, REFUSALS_A_MINUTE, ClaimDesk
from edgefl.server.enrolment import Order
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision, provision_all
from edgefl.server.renewal import MOST_IN_AN_HOUR, ROTATE, RenewalDesk
from edgefl.store.audit import events
from edgefl.store.credentials import ask_rotation, certificates_of, find_claim, rotations
from edgefl.store.database import open_database, transaction
from edgefl.store.registry import get_device
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimReply, ClaimRequest, Renewed, RenewRequest
from edgefl.wire.messages import decode, encode

HOUR = 3600.0
DAYS = 90


class Office:
    """A fleet whose server is asked by hand, at a time that the test sets."""

    def __init__(self, root):
        self.root = root
        self.fleet = create_fleet(root / "farm", name="farm")
        self.authority = authority_of(self.fleet)
        self.database = open_database(self.fleet.database)
        self.database.execute("PRAGMA synchronous=OFF")
        self.later = 0.0
        self.desk = ClaimDesk(self.database, self.authority, DAYS, wall=self.wall, clock=lambda: self.later)
        self.renewals = RenewalDesk(self.database, self.authority, DAYS, self.wall)

    def wall(self):
        """Seconds since 1970: now, and what the test adds."""
        return dt.datetime.now(dt.UTC).timestamp() + self.later

    def claim(self, device="cam-01", **options):
        """A new claim's token."""
        options = {"claim_seconds": HOUR, **options}
        (made,) = provision_all(self.fleet, [Order(device, "rpi-zero-2w")], self.root / f"out{self.wall()}", **options)
        return made.claim.token.encode()

    def ask(self, token, csr, device="cam-01", profile="rpi-zero-2w"):
        """The desk's reply."""
        return self.desk.answer(ClaimRequest(device, token, csr, profile))

    def audit(self, device="cam-01"):
        """Event and detail of everything that happened."""
        return [(one.event, one.detail) for one in events(self.database, device)]

    def states(self, device="cam-01"):
        """States of its certificates, oldest first."""
        return [one.state for one in certificates_of(self.database, device)]

    def serials(self, device="cam-01"):
        """Serial numbers of its certificates, oldest first."""
        return [one.serial for one in certificates_of(self.database, device)]

    def renew(self, csr=b"", device="cam-01", using=None):
        """The answer to a device's message."""
        return self.renewals.heard(device, encode(RenewRequest(using or self.serials(device)[0], csr)))


@pytest.fixture
def office(tmp_path):
    """A fleet of this test's own."""
    made = Office(tmp_path)
    yield made
    made.database.close()


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


def rsa_request(name="cam-01"):
    """A valid request for a key that boards do not use."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return request_of(key, name)


def request_of(key, *names, extensions=()):
    """A request with these common names, and extensions that it asks for."""
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def new_key(curve=ec.SECP256R1):
    """A fresh key."""
    return ec.generate_private_key(curve())


def with_bad_signature():
    """A request whose last byte, inside the signature, was changed."""
    csr = make_request("cam-01")[1]
    return csr[:-1] + bytes([csr[-1] ^ 1])


def with_another_key():
    """A request with one key inside and the signature of another: whoever sends it does not have the key."""
    ours, theirs = new_key(), new_key()
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    csr = request_of(ours, "cam-01")
    changed = csr.replace(ours.public_key().public_bytes(*der), theirs.public_key().public_bytes(*der))
    assert changed != csr
    return changed


REQUESTS = {
    "name": lambda: make_request("cam-02")[1],
    "request RSA": rsa_request,
    "request P-384": lambda: request_of(new_key(ec.SECP384R1), "cam-01"),
    "request bad signature": with_bad_signature,
    "request another's key": with_another_key,
    "request two names": lambda: request_of(new_key(), "cam-01", "cam-02"),
    "request no name": lambda: request_of(new_key()),
    "request nonsense": lambda: b"\x30\x03\x02\x01\x00",
    "request PEM": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_wrong_signing_request_is_refused(office, kind):
    """Each wrong request gets its code, is written down, gives nothing out, and leaves the claim open for the right one."""
    token = office.claim()
    refused = office.ask(token, REQUESTS[kind]())
    assert (refused.certificate, refused.code) == (b"", kind.split()[0])
    assert office.audit()[-1][0] == "claim-refused"
    assert office.states() == []
    assert office.ask(token, make_request("cam-01")[1]).code == ""


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


def test_what_a_request_asks_for_is_ignored(office):
    """A request for the rights of an authority, a server and other names gives a plain device's certificate."""
    key = new_key()
    wishes = (
        x509.BasicConstraints(ca=True, path_length=3),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://farm/device/cam-99")]),
    )
    reply = office.ask(office.claim(), request_of(key, "cam-01", extensions=wishes))
    own = x509.load_pem_x509_certificates(reply.certificate)[0]
    value = {type(one.value): one.value for one in own.extensions}
    assert not value[x509.BasicConstraints].ca
    assert list(value[x509.ExtendedKeyUsage]) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert value[x509.SubjectAlternativeName].get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://farm/device/cam-01"
    ]
    assert value[x509.SubjectAlternativeName].get_values_for_type(x509.DNSName) == []


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


# The line to the claim broker


def test_the_line_answers_boards_and_ends_with_the_claims(office):
    """It opens when a claim is there, answers on the board's own topic, and closes when no claim is left."""
    broker, opened = MemoryBroker(), []

    def connect():
        opened.append(broker.link("server"))
        return opened[-1]

    line = ClaimLine(office.database, office.desk, connect, wall=office.wall, clock=lambda: office.later)
    line.advance()
    assert opened == []
    token, (key, csr) = office.claim(), make_request("cam-01")
    board = broker.link("0123abcd")
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
    line = ClaimLine(office.database, office.desk, lambda: broker.link("server"), wall=office.wall, clock=lambda: office.later)
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
    stranger = broker.link("stranger")
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


# Renewal


@pytest.fixture
def settled(office):
    """A device whose certificate is in use."""
    office.ask(office.claim(), make_request("cam-01")[1])
    office.renew()
    assert office.states() == ["active"]
    return office


def test_both_certificates_are_good_until_the_new_one_is_seen(settled):
    """A renewal leaves the old one active; saying again that the old one is in use changes nothing; the new one replaces it."""
    key, csr = make_request("cam-01")
    answer = settled.renew(csr)
    check_answer(answer.certificate, key, "cam-01", settled.authority.root)
    assert settled.states() == ["active", "pending"]
    settled.renew()
    assert settled.states() == ["active", "pending"]
    settled.renew(using=settled.serials()[1])
    assert settled.states() == ["replaced", "active"]
    assert get_device(settled.database, "cam-01").certificate == settled.serials()[1]


def test_the_same_renewal_gets_the_same_certificate(settled):
    """A reply that was lost costs nothing."""
    _, csr = make_request("cam-01")
    assert settled.renew(csr) == settled.renew(csr)
    assert len(settled.states()) == 2


def test_a_device_that_went_back_is_believed(settled):
    """A device that says it uses the old one again, because the new one did not connect, is active with the old one."""
    settled.renew(make_request("cam-01")[1])
    settled.renew(using=settled.serials()[1])
    settled.renew(using=settled.serials()[0])
    assert settled.states() == ["active", "replaced"]


def test_renewals_are_bounded(settled):
    """A device gets a few certificates in an hour, and never has two that were not used yet."""
    codes = [settled.renew(make_request("cam-01")[1]).code for _ in range(MOST_IN_AN_HOUR + 2)]
    assert codes == [""] * (MOST_IN_AN_HOUR - 1) + ["busy"] * 3
    assert settled.states().count("pending") == 1
    settled.later = 2 * HOUR
    assert settled.renew(make_request("cam-01")[1]).code == ""


def test_a_renewal_for_another_device_is_refused(settled):
    """A device cannot get a certificate for another's id; that is written down."""
    assert settled.renew(make_request("cam-02")[1]).code == "name"
    assert settled.audit()[-1][0] == "renewal-refused"
    assert settled.states() == ["active"]


def test_a_revoked_certificate_stays_revoked(settled):
    """That a device says it uses it does not bring it back."""
    with transaction(settled.database):
        settled.database.execute("UPDATE certificates SET state = 'revoked'")
    assert settled.renew() is None
    assert settled.states() == ["revoked"]


def test_a_strangers_serial_changes_nothing(settled):
    """A serial number that is not the device's own is no news."""
    provision(settled.fleet, ["cam-02"], "rpi-zero-2w", settled.root / "bundles")
    assert settled.renew(using=settled.serials("cam-02")[0]) is None
    assert settled.renew(using="abc") is None
    assert settled.states() == ["active"]


def test_the_wish_to_rotate_is_told_until_it_is_done(settled):
    """It is news once, told again on each connection with the old certificate, and forgotten with the new one."""
    with transaction(settled.database):
        ask_rotation(settled.database, "cam-01", settled.wall())
    assert settled.renewals.news() == ["cam-01"]
    assert settled.renewals.news() == []
    assert settled.renew() == Renewed(code=ROTATE)
    settled.later = 5.0
    settled.renew(make_request("cam-01")[1])
    assert settled.renew(using=settled.serials()[1]) is None
    assert rotations(settled.database) == {}


def test_a_ready_bundle_can_rotate_too(office):
    """The first certificate that a board asks for takes the place of the one that came in its bundle."""
    provision(office.fleet, ["cam-01"], "rpi-zero-2w", office.root / "bundles")
    assert office.states() == ["active"]
    office.renew(make_request("cam-01")[1])
    office.renew(using=office.serials()[1])
    assert office.states() == ["replaced", "active"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_no_request(data):
    """Whatever bytes come as a signing request, the answer is one named error."""
    with pytest.raises(SignatureError):
        read_request(data)


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


def test_an_answer_for_another_key_is_not_believed(office):
    """A board takes a certificate only for its own key and id, from its own fleet."""
    token, (key, csr) = office.claim(), make_request("cam-01")
    chain = office.ask(token, csr).certificate
    stranger = create_fleet(office.root / "other", name="farm")
    for wrong in (
        (chain, make_request("cam-01")[0], "cam-01", office.authority.root),
        (chain, key, "cam-02", office.authority.root),
        (chain, key, "cam-01", stranger.root_certificate.read_bytes()),
        (chain[: len(chain) // 2], key, "cam-01", office.authority.root),
    ):
        with pytest.raises(SignatureError):
            check_answer(*wrong)


def test_errors_of_claims_carry_their_code():
    """The code of the reply is kept apart from the words."""
    assert ClaimError("used", "the claim was used").answer == "used"
