"""A board's own pair: taken over from its bundle, and changed for a newer one without ever being without."""

import random

import pytest

from edgefl.device import identity
from edgefl.device.config import load_bundle
from edgefl.device.rotation import LATER, NAME, PATIENCE, TRIAL_SECONDS, Rotation
from edgefl.errors import ConfigError, SignatureError, StoreError
from edgefl.identity.requests import make_request, read_request
from edgefl.link.contract import Arrived, Connected
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.server.claims import sign
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision
from edgefl.wire import topics
from edgefl.wire.enrolment import Renewed, RenewRequest
from edgefl.wire.messages import decode, encode
from toyboard import PowerCut

DAY = 86400.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A fleet; devices of different tests have different ids."""
    return create_fleet(tmp_path_factory.mktemp("fleet") / "farm", name="farm")


@pytest.fixture
def authority(fleet):
    """Who signs."""
    return authority_of(fleet)


@pytest.fixture
def ready(fleet, request, tmp_path):
    """A ready bundle whose pair has been taken over."""
    name = f"r{abs(hash(request.node.name)) % 10**9}"
    (made,) = provision(fleet, [name], "rpi-zero-2w", tmp_path)
    bundle = load_bundle(made.bundle)
    bundle.state.mkdir()
    identity.take_over(bundle)
    return bundle


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
