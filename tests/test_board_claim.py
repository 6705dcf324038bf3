"""A board claims its identity: through power cuts, past lies and refusals, with what stands in its bundle or on its label."""

import stat

import pytest

from edgefl.device import identity
from edgefl.device.claimcode import claim_code, read_code
from edgefl.device.claiming import claim_if_open, make_claim
from edgefl.device.config import load_bundle
from edgefl.errors import ConfigError, InputError
from edgefl.identity.requests import make_request, read_request
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.server.claims import sign
from edgefl.server.enrolment import Order
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision_all
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimReply, ClaimRequest, RenewRequest
from edgefl.wire.messages import decode, encode
from toyboard import PowerCut


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
