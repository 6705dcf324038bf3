"""The board's side of its identity: claiming through power cuts, taking over a bundle's pair, and changing certificates."""

import random
import stat

import pytest

from edgefl.device import identity
from edgefl.device.claimcode import claim_code, read_code
from edgefl.device.claiming import claim_if_open, make_claim
from edgefl.device.config import load_bundle
from edgefl.device.rotation import LATER, NAME, PATIENCE, TRIAL_SECONDS, Rotation
from edgefl.errors import ConfigError, InputError, SignatureError, StoreError
from edgefl.identity.requests import make_request, read_request
from edgefl.link.contract import Arrived, Connected
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.server.claims import sign
from edgefl.server.enrolment import Order
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision, provision_all
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimReply, ClaimRequest, Renewed, RenewRequest
from edgefl.wire.messages import decode, encode

DAY = 86400.0


class PowerCut(BaseException):
    """The board has no power: nothing catches this."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A fleet; devices of different tests have different ids."""
    return create_fleet(tmp_path_factory.mktemp("fleet") / "farm", name="farm")


@pytest.fixture
def authority(fleet):
    """Who signs."""
    return authority_of(fleet)


@pytest.fixture
def claimable(fleet, request, tmp_path):
    """A bundle with a claim, for this test alone."""
    name = f"b{abs(hash(request.node.name)) % 10**9}"
    (made,) = provision_all(fleet, [Order(name, "rpi-zero-2w")], tmp_path, claim_seconds=3600.0)
    bundle = load_bundle(made.bundle)
    bundle.state.mkdir()
    return bundle


@pytest.fixture
def ready(fleet, request, tmp_path):
    """A ready bundle whose pair has been taken over."""
    name = f"r{abs(hash(request.node.name)) % 10**9}"
    (made,) = provision(fleet, [name], "rpi-zero-2w", tmp_path)
    bundle = load_bundle(made.bundle)
    bundle.state.mkdir()
    identity.take_over(bundle)
    return bundle


class Server:
    """Signs whatever board asks on a broker in memory, as a polling end of the board's own link."""

    def __init__(self, authority, answer=None):
        self.broker = MemoryBroker()
        self.asked = []
        self._answer = answer or self.signed
        self._authority = authority
        self._given = {}
        self._link = MemoryLink(self.broker, SERVER)
        self._link.subscribe(topics.ALL_CLAIMS)
        self._link.poll(0)

    def signed(self, request):
        """The certificate; the same request gets the same."""
        if request.csr not in self._given:
            self._given[request.csr] = sign(self._authority, read_request(request.csr), request.csr, 90, 1.8e9)[0]
        return ClaimReply(self._given[request.csr])

    def connect(self, _address, name):
        """A board's link, during whose polls the server works."""
        link, poll = MemoryLink(self.broker, name), None
        poll = link.poll

        def working(timeout, wake=()):
            events = poll(timeout, wake)
            for event in self._link.poll(0):
                if isinstance(event, Arrived):
                    self.asked.append(decode(event.payload, ClaimRequest))
                    reply = self._answer(self.asked[-1])
                    self._link.publish(topics.claim_reply(event.topic.split("/")[3]), encode(reply))
            self._link.poll(0)
            return events + poll(0, wake)

        link.poll = working
        return link


def never():
    """Nobody tells the board to stop."""
    return False


def test_a_claim_leaves_a_pair_and_no_token(claimable, authority):
    """After a claim there are key and certificate in one private file, and neither token nor draft."""
    server = Server(authority)
    assert make_claim(claimable, identity.open_claim(claimable), never, server.connect)
    assert identity.pair_validity(claimable).name == claimable.config.id
    assert stat.S_IMODE(claimable.pair.stat().st_mode) == 0o600
    assert {path.name for path in claimable.state.iterdir()} == {"device.pem", "claimed"}
    assert not (claimable.directory / "claim.toml").exists()
    assert claimable.certificate == claimable.key == claimable.pair


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("file", ["draft", "device.pem", "claimed"])
def test_a_power_cut_at_any_write_loses_nothing(claimable, authority, monkeypatch, file, when):
    """Cut before or after each of its files is written, a board ends with one pair, and has used one key once it was sent."""
    server, write = Server(authority), identity.write_file
    claim = identity.open_claim(claimable)

    def cut(path, data, mode=0o644):
        if path.name.startswith(file) and when == "before":
            raise PowerCut
        write(path, data, mode)
        if path.name.startswith(file):
            raise PowerCut

    monkeypatch.setattr(identity, "write_file", cut)
    with pytest.raises(PowerCut):
        make_claim(claimable, claim, never, server.connect)
    monkeypatch.undo()
    again = identity.open_claim(claimable)
    if again is not None:
        assert make_claim(claimable, again, never, server.connect)
    assert len({request.csr for request in server.asked}) == 1
    assert identity.open_claim(claimable) is None
    assert identity.pair_validity(claimable).name == claimable.config.id


def test_a_bundle_that_cannot_be_changed_is_claimed_once(claimable, authority):
    """Where the token cannot be deleted, the board remembers that it was used."""
    server = Server(authority)
    text = (claimable.directory / "claim.toml").read_bytes()
    make_claim(claimable, identity.open_claim(claimable), never, server.connect)
    (claimable.directory / "claim.toml").write_bytes(text)
    assert identity.open_claim(claimable) is None
    assert claim_if_open(claimable, never)
    assert not (claimable.directory / "claim.toml").exists()


def test_busy_is_waited_out_and_lies_are_not_believed(claimable, authority, monkeypatch):
    """A busy server, garbage and a certificate for another key are passed over until the right answer comes."""
    monkeypatch.setattr("edgefl.device.claiming.FIRST_PATIENCE", 0.0)
    monkeypatch.setattr("edgefl.link.backoff.SHORTEST_PAUSE", 0.0)
    other = make_request(claimable.config.id)[1]
    foreign = sign(authority, read_request(other), other, 90, 1.8e9)[0]
    answers = [ClaimReply(code="busy"), RenewRequest("ab"), ClaimReply(foreign), ClaimReply(b"nonsense")]
    server = Server(authority)
    signed = server.signed
    server._answer = lambda request: answers.pop(0) if answers else signed(request)
    assert make_claim(claimable, identity.open_claim(claimable), never, server.connect)
    assert len(server.asked) == 5


@pytest.mark.parametrize("code", ["token", "used", "expired", "revoked", "profile", "a-code-of-tomorrow"])
def test_a_refusal_is_final_and_keeps_the_claim(claimable, authority, code):
    """A refused board says why and stops; token and key stay where they are."""
    server = Server(authority, lambda _: ClaimReply(code=code, text="no"))
    with pytest.raises(ConfigError, match=code):
        make_claim(claimable, identity.open_claim(claimable), never, server.connect)
    assert identity.open_claim(claimable) is not None
    assert len(list(claimable.state.glob("draft-*"))) == 1


def test_a_stopped_board_keeps_its_claim(claimable, authority):
    """Told to stop while it waits, a board gives nothing up."""
    server = Server(authority, lambda _: ClaimReply(code="busy"))
    asks = iter([False, False, True])
    assert not make_claim(claimable, identity.open_claim(claimable), lambda: next(asks), server.connect)
    assert identity.open_claim(claimable) is not None


def test_a_malformed_claim_is_named(claimable):
    """A claim file with a short token or an unknown key is an error that names the file."""
    path = claimable.directory / "claim.toml"
    text = path.read_text()
    for wrong in (text + "colour = 'red'\n", 'token = "short"\nhost = "h"\nport = 1\nexpires = 1\n'):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"claim\.toml"):
            identity.open_claim(claimable)


def test_the_code_on_a_label_is_the_claim(claimable):
    """What a label's code holds gives the claim back, for this device only."""
    claim = identity.open_claim(claimable)
    code = claim_code("farm", claimable.config.id, claim)
    assert read_code(f" {code}\n", claimable.config.id) == claim
    for wrong in ("", "http://x", code.replace("token", "taken"), code.replace("port=", "port=x"), code + "x" * 500):
        with pytest.raises(InputError):
            read_code(wrong, claimable.config.id)
    with pytest.raises(InputError, match="another device"):
        read_code(code, "cam-99")


# Ready bundles


def test_the_newer_pair_wins(ready, authority):
    """A renewed pair stays when the same bundle is installed again; a bundle made later takes its place."""
    key, csr = make_request(ready.config.id)
    chain = sign(authority, read_request(csr), csr, 90, identity.pair_validity(ready).begins + 2 * DAY)[0]
    identity.install_pair(ready, key, chain)
    held = ready.pair.read_bytes()
    identity.take_over(ready)
    assert ready.pair.read_bytes() == held
    assert ready.has_own_pair
    newer = authority.device(ready.config.id, now=None)
    old = sign(authority, read_request(csr), csr, 90, 1.6e9)[0]
    identity.install_pair(ready, key, old)
    ready.own_key.write_bytes(newer.key)
    ready.own_certificate.write_bytes(newer.certificate)
    identity.take_over(ready)
    assert ready.pair.read_bytes() == newer.key + newer.certificate


def test_a_damaged_pair_is_replaced_by_the_bundles(ready):
    """What cannot be read is no pair."""
    good = ready.pair.read_bytes()
    ready.pair.write_bytes(good[:300])
    identity.take_over(ready)
    assert ready.pair.read_bytes() == good


def test_a_bundle_with_neither_key_nor_claim_is_refused(ready):
    """As before there were claims: the message names the file that is missing."""
    ready.own_key.unlink()
    load_bundle(ready.directory)  # the board has a pair of its own
    ready.pair.unlink()
    with pytest.raises(ConfigError, match=r"device\.key is missing"):
        load_bundle(ready.directory)


# Rotation


class Turning:
    """A rotation on a broker in memory, with a clock on a string."""

    def __init__(self, bundle, authority):
        self.bundle, self.authority = bundle, authority
        self.now, self.wall = 0.0, identity.pair_validity(bundle).begins + DAY
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker, bundle.config.id)
        self.server = MemoryLink(self.broker, SERVER)
        self.server.subscribe(topics.renew(bundle.config.id))
        self.server.poll(0)
        self.start()
        self.heard()

    def start(self):
        """A new process."""
        self.rotation = Rotation(self.bundle, self.link, clock=lambda: self.now, wall=lambda: self.wall, rng=random.Random(1))

    def later(self, seconds):
        """Let time pass."""
        self.now += seconds
        self.wall += seconds

    def heard(self):
        """Let the board work; what the server hears of it."""
        said = []
        for _ in range(3):
            for event in self.link.poll(0):
                if isinstance(event, Connected):
                    self.rotation.connected()
            self.rotation.tick()
            said += [decode(event.payload, RenewRequest) for event in self.server.poll(0) if isinstance(event, Arrived)]
        return said

    def answer(self, csr):
        """A certificate for this request, issued now."""
        self.rotation.heard(encode(Renewed(self.chain(csr))))

    def chain(self, csr):
        """The same, not yet sent."""
        return sign(self.authority, read_request(csr), csr, 90, self.wall)[0]

    @property
    def serial(self):
        """Of the pair that connects."""
        return identity.pair_validity(self.bundle).serial


@pytest.fixture
def turning(ready, authority):
    """A board that has just connected."""
    return Turning(ready, authority)


def test_a_young_certificate_is_left_alone(turning):
    """Before 60 % of its life nothing is asked for, whatever the clock does below that."""
    for _ in range(5):
        turning.later(300 * DAY)
        assert not any(request.csr for request in turning.heard())
    turning.wall = 0.0
    turning.later(120.0)
    assert turning.heard() == []


def test_an_old_certificate_is_renewed_with_a_new_key(turning):
    """At 60 % a request goes out; with the answer the pair changes, the link connects anew and the board says so."""
    before, pair = turning.serial, turning.bundle.pair.read_bytes()
    held = identity.pair_validity(turning.bundle)
    turning.wall = held.begins + 0.61 * (held.ends - held.begins)
    turning.now += 120.0
    (request,) = turning.heard()
    assert request.using == before
    turning.answer(request.csr)
    assert (turning.bundle.state / "device.previous.pem").read_bytes() == pair
    assert not turning.link.connected
    assert turning.heard() == [RenewRequest(turning.serial)]
    assert turning.serial != before
    assert private_key(turning.bundle.pair.read_bytes()) != private_key(pair)
    assert {path.name for path in turning.bundle.state.iterdir()} == {"device.pem"}
    turning.later(2 * LATER)
    assert turning.heard() == []


def private_key(pem):
    """The first block of a pair."""
    return pem.partition(b"-----END PRIVATE KEY")[0]


def test_the_server_can_ask_for_it(turning):
    """The order to rotate is followed at once, and repeating it does not make a second key."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (first,) = turning.heard()
    turning.rotation.heard(encode(Renewed(code="rotate")))
    assert turning.heard() == []
    turning.later(100 * PATIENCE)
    assert turning.heard() == [first]


def test_a_power_cut_while_asking_sends_the_same_request(turning):
    """After a restart the board asks again with the key that it has made."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    turning.start()
    assert request in turning.heard()
    turning.answer(request.csr)
    assert turning.serial != request.using


@pytest.mark.parametrize("cut", ["keep_previous", "install_pair", "drop_draft"])
def test_a_power_cut_in_the_switch_leaves_a_pair_that_works(turning, monkeypatch, cut):
    """Cut before any step of the switch, the board has the old pair or the new one, whole, and finishes later."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    chain = turning.chain(request.csr)

    def dark(*_):
        raise PowerCut

    monkeypatch.setattr(identity, cut, dark)
    with pytest.raises(PowerCut):
        turning.rotation.heard(encode(Renewed(chain)))
    monkeypatch.undo()
    assert turning.serial == request.using or cut == "drop_draft"
    turning.start()
    turning.link.reconnect()
    turning.heard()
    turning.rotation.heard(encode(Renewed(chain)))
    assert turning.serial != request.using
    turning.heard()
    assert {path.name for path in turning.bundle.state.iterdir()} == {"device.pem"}


def test_a_new_pair_that_does_not_connect_is_given_up(turning):
    """If the broker does not take the new pair in time, also over a restart, the board goes back to the old one and connects."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    turning.broker.stop()
    turning.answer(request.csr)
    turning.heard()
    turning.start()
    turning.later(TRIAL_SECONDS - 1)
    turning.heard()
    assert turning.serial != request.using
    turning.later(2)
    turning.heard()
    assert turning.serial == request.using
    turning.broker.start()
    turning.server.poll(0)
    assert RenewRequest(request.using) in turning.heard()


def test_a_certificate_that_is_not_ours_changes_nothing(turning):
    """An answer for another key is an error by name; the pair stays, and the right answer is still taken."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    with pytest.raises(SignatureError):
        turning.answer(make_request(turning.bundle.config.id)[1])
    assert turning.serial == request.using
    turning.answer(request.csr)
    assert turning.serial != request.using


def test_an_answer_that_nobody_asked_for_is_ignored(turning):
    """Without a request there is no key for it; the same answer twice changes the pair once."""
    before = turning.serial
    turning.answer(make_request(turning.bundle.config.id)[1])
    assert turning.serial == before
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    chain = turning.chain(request.csr)
    for _ in range(2):
        turning.rotation.heard(encode(Renewed(chain)))
    assert turning.serial != before


def test_a_refused_renewal_waits(turning):
    """After a refusal the board asks again an hour later, with the same request."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()
    turning.rotation.heard(encode(Renewed(code="busy")))
    turning.later(LATER - 1)
    assert turning.heard() == []
    turning.later(2)
    assert turning.heard() == [request]


def test_a_full_disk_keeps_the_old_pair(turning, monkeypatch):
    """When the new pair cannot be written, the old one stays and the draft with it."""
    turning.rotation.heard(encode(Renewed(code="rotate")))
    (request,) = turning.heard()

    def full(*_):
        raise StoreError("disk full")

    monkeypatch.setattr(identity, "install_pair", full)
    with pytest.raises(StoreError):
        turning.answer(request.csr)
    assert turning.serial == request.using
    assert identity.has_draft(turning.bundle, NAME)
