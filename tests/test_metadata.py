"""The fleet's TUF metadata: what a device believes, and each attack by its name."""

import dataclasses
import json

import pytest

from edgefl.errors import EndlessDataError, FleetError, FreezeError, MixError, RollbackError, SignatureError
from edgefl.identity.metadata import TrustedMetadata
from edgefl.identity.repository import (
    DAY,
    appointed,
    expiries,
    found,
    listed,
    newest_root,
    online_key,
    renewed,
    with_targets,
)
from edgefl.identity.signing import Signer
from edgefl.wire.messages import MAX_PACKET
from edgefl.wire.topics import target_path

START = 1_700_000_000.0
PATH = target_path("digits", "rpi-zero-2w", 3)


@dataclasses.dataclass
class Office:
    """A fleet's keys and documents."""

    root: list
    release: list
    online: Signer
    documents: dict

    def publish(self, **manifests):
        """List these manifests; the documents that changed."""
        by_path = {target_path(model, "rpi-zero-2w", 3): data for model, data in manifests.items()}
        changed = with_targets(self.documents, by_path, self.release, self.online, START)
        self.documents |= changed
        return changed


def office(roots=1, releases=1, **thresholds):
    """A new fleet."""
    root, release, online = (
        [Signer.generate() for _ in range(roots)],
        [Signer.generate() for _ in range(releases)],
        Signer.generate(),
    )
    return Office(root, release, online, dict(found(root, release, online, START, thresholds=thresholds)))


class Board:
    """A device whose clock a test sets."""

    def __init__(self, directory, fleet):
        self.now = START
        self.directory = directory
        self.first = fleet.documents["1.root"]
        self.start()

    def start(self):
        """Begin with what is on disk and nothing heard."""
        self.trust = TrustedMetadata(self.directory, self.first, lambda: self.now)

    def hear(self, documents, refresh=True):
        """Hear documents and believe what can be believed."""
        for name, data in documents.items():
            self.trust.hear(name, data)
        return self.trust.refresh() if refresh else None


@pytest.fixture
def fleet():
    """A fleet that has published one manifest."""
    made = office()
    made.publish(digits=b"a manifest")
    return made


@pytest.fixture
def board(tmp_path, fleet):
    """A board that has believed it."""
    made = Board(tmp_path / "tuf", fleet)
    assert made.hear(fleet.documents)
    return made


def test_a_listed_manifest_is_known_by_its_hash(board, fleet):
    """A device knows the SHA-256 of every manifest that the release key lists, and of no other."""
    assert board.trust.manifest_hash(PATH) == listed(fleet.documents)[PATH]
    assert board.trust.manifest_hash("digits/rpi-zero-2w/4") is None
    assert board.trust.online_key == fleet.online.public_key


def test_documents_may_come_in_any_order(tmp_path, fleet):
    """Until everything has come nothing is believed and nothing is wrong."""
    board = Board(tmp_path / "tuf", fleet)
    for name in ("timestamp", "1.root", "snapshot"):
        assert not board.hear({name: fleet.documents[name]})
    assert board.hear({"targets": fleet.documents["targets"]})


def test_what_was_believed_survives_a_restart(board, fleet):
    """After a restart the same documents are no news, and an older one is still a replay."""
    board.start()
    assert board.hear(fleet.documents)
    old = dict(fleet.documents)
    fleet.publish(digits=b"another")
    assert board.hear(fleet.documents)
    board.start()
    with pytest.raises(RollbackError):
        board.hear(old)


def test_replayed_metadata_is_a_rollback(board, fleet):
    """An older timestamp than one that was believed is refused, and what was believed stays."""
    old = dict(fleet.documents)
    fleet.publish(digits=b"another")
    board.hear(fleet.documents)
    with pytest.raises(RollbackError):
        board.hear(old)
    assert board.trust.manifest_hash(PATH) == listed(fleet.documents)[PATH]


def test_withheld_metadata_is_a_freeze(board, fleet):
    """A timestamp that is not renewed expires; a renewed one is believed."""
    board.now += 15 * DAY
    with pytest.raises(FreezeError, match="clock"):
        board.trust.refresh()
    assert board.hear(renewed(fleet.documents, fleet.online, board.now))


def test_mixed_documents_are_named(board, fleet):
    """A new timestamp with an older snapshot is a mix, not a bad signature."""
    fleet.publish(digits=b"another")
    with pytest.raises(MixError):
        board.hear({"timestamp": fleet.documents["timestamp"]})
    assert board.hear(fleet.documents)


def test_another_fleets_keys_are_not_believed(board):
    """Documents that other keys have signed are refused."""
    other = office()
    other.publish(digits=b"evil")
    other.publish(digits=b"evil again")
    with pytest.raises(SignatureError, match="signatures"):
        board.hear({name: data for name, data in other.documents.items() if name != "1.root"})


def test_the_online_key_alone_lists_nothing(fleet):
    """Whoever holds the server's key only cannot list a manifest."""
    with pytest.raises(FleetError, match="may not speak for targets"):
        with_targets(fleet.documents, {PATH: b"evil"}, [fleet.online], fleet.online, START)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_every_changed_document_is_refused(board, fleet, role):
    """A document with a later version and the old signature is refused, whichever it is."""
    fleet.publish(digits=b"another")
    content = json.loads(fleet.documents[role])
    content["signed"]["version"] += 1
    with pytest.raises(SignatureError):
        board.hear({**fleet.documents, role: json.dumps(content).encode()})


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"signed": {}}', b"9" * 5000])
@pytest.mark.parametrize("role", ["timestamp", "2.root"])
def test_junk_is_refused_by_name(board, role, junk):
    """What is no document at all is a SignatureError, whatever it is."""
    with pytest.raises(SignatureError):
        board.hear({role: junk})


def test_endless_data_is_named(board):
    """A document that is longer than its role allows is refused before it is read."""
    with pytest.raises(EndlessDataError):
        board.hear({"timestamp": b"x" * 20_000})
    with pytest.raises(EndlessDataError):
        board.hear({"2.root": b"x" * (MAX_PACKET + 1)})


def test_unknown_roles_and_too_many_roots_are_refused(board):
    """Nobody can fill a device's memory with documents that it has no use for."""
    for name in ("delegated", "root", "x.root", "1.timestamp", "999999.root", ""):
        with pytest.raises(SignatureError):
            board.trust.hear(name, b"x")
    for number in range(2, 257):
        board.trust.hear(f"{number}.root", b"x")
    with pytest.raises(EndlessDataError):
        board.trust.hear("258.root", b"x")


def test_a_key_is_replaced_by_the_root_keys(board, fleet):
    """After a rotation of the online key the old one is worth nothing, and devices follow by themselves."""
    new = Signer.generate()
    fleet.documents |= appointed(fleet.documents, "online", [new], 1, fleet.root, START)
    stolen, fleet.online = fleet.online, new
    fleet.publish(digits=b"another")
    assert board.hear(fleet.documents)
    assert board.trust.online_key == new.public_key == online_key(newest_root(fleet.documents)[1])
    evil = with_targets(fleet.documents, {PATH: b"x"}, fleet.release, stolen, START)
    with pytest.raises(SignatureError):
        board.hear(evil)


def test_a_fast_forward_is_healed_by_a_new_key(board, fleet):
    """A thief of the online key who counts to 2^62 locks nobody out for longer than until the key is replaced (5.3.11)."""
    thief = dict(fleet.documents)
    for role in ("snapshot", "timestamp"):
        content = json.loads(thief[role])
        content["signed"]["version"] = 1 << 62
        thief[role] = json.dumps(content).encode()
    forward = fast_forward(thief, fleet.online)
    assert board.hear(forward)
    fleet.publish(digits=b"honest")
    with pytest.raises(RollbackError):
        board.hear(fleet.documents)
    new = Signer.generate()
    fleet.documents |= appointed(fleet.documents, "online", [new], 1, fleet.root, START)
    fleet.online = new
    fleet.publish(digits=b"honest")
    assert board.hear(fleet.documents)
    assert board.trust.manifest_hash(PATH) == listed(fleet.documents)[PATH]


def fast_forward(documents, online):
    """Snapshot and timestamp with a version that cannot be passed, properly signed."""
    from tuf.api.metadata import MetaFile, Snapshot, Timestamp

    from edgefl.identity import repository

    snapshot = repository._read(documents, "snapshot", Snapshot)
    made = repository._signed(snapshot, [online])
    stamp = repository._read(documents, "timestamp", Timestamp)
    stamp.snapshot_meta = MetaFile.from_data(snapshot.version, made, ["sha256"])
    return {"snapshot": made, "timestamp": repository._signed(stamp, [online])}


def test_a_chain_of_roots_is_followed(tmp_path, fleet):
    """A board that was off while the root keys were replaced twice believes the newest root, and keeps it over a restart."""
    board = Board(tmp_path / "late", fleet)
    for _ in range(2):
        new = [Signer.generate()]
        fleet.documents |= appointed(fleet.documents, "root", new, 1, fleet.root, START)
        fleet.root = new
    fleet.documents |= appointed(fleet.documents, "online", [Signer.generate()], 1, fleet.root, START)
    board.hear(fleet.documents, refresh=False)
    with pytest.raises(SignatureError):  # the timestamp is still the old key's
        board.trust.refresh()
    key = board.trust.online_key
    assert key == online_key(newest_root(fleet.documents)[1]) != fleet.online.public_key
    board.start()
    assert board.trust.online_key == key


def test_a_threshold_needs_that_many_keys(tmp_path):
    """Where two of three release keys must sign, one alone lists nothing and two do."""
    fleet = office(releases=3, targets=2)
    with pytest.raises(FleetError, match="--keys"):
        with_targets(fleet.documents, {PATH: b"x"}, fleet.release[:1], fleet.online, START)
    fleet.documents |= with_targets(fleet.documents, {PATH: b"x"}, fleet.release[1:], fleet.online, START)
    assert Board(tmp_path / "tuf", fleet).hear(fleet.documents)


def test_too_few_root_keys_change_nothing():
    """A new root needs the threshold of the old root's keys."""
    fleet = office(roots=2, root=2)
    with pytest.raises(FleetError, match="root keys"):
        appointed(fleet.documents, "online", [Signer.generate()], 1, fleet.root[:1], START)
    with pytest.raises(FleetError, match="signatures"):
        appointed(fleet.documents, "targets", fleet.release, 2, fleet.root, START)


def test_the_server_renews_in_time(fleet):
    """The timestamp is renewed once a day, and nothing is made while there is nothing to renew."""
    assert renewed(fleet.documents, fleet.online, START + 0.9 * DAY) == {}
    changed = renewed(fleet.documents, fleet.online, START + 1.1 * DAY)
    assert set(changed) == {"snapshot", "timestamp"}
    before, after = expiries(fleet.documents), expiries({**fleet.documents, **changed})
    assert after["timestamp"][0] == before["timestamp"][0] + 1
    assert after["timestamp"][1] > before["timestamp"][1]
    assert after["root"] == before["root"]
