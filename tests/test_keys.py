"""Replacing the keys that sign a fleet's metadata."""

import json
import shutil
from contextlib import closing

import pytest
from click.testing import CliRunner

from edgefl.cli.main import edgefl
from edgefl.errors import FleetError
from edgefl.identity.metadata import TrustedMetadata
from edgefl.server.bundle import trust_of
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer, roles, rotate, signers
from edgefl.store.database import open_database
from edgefl.store.documents import documents

NOW = 1_700_000_000.0


def in_force(fleet):
    """The fleet's metadata."""
    with closing(open_database(fleet.database)) as database:
        return documents(database)


@pytest.fixture
def fleet(tmp_path):
    """A fleet without devices or models."""
    return create_fleet(tmp_path / "farm", name="farm")


@pytest.mark.parametrize("role", ["online", "release", "root"])
def test_a_replaced_key_is_worth_nothing(fleet, role):
    """After a rotation the role's only key is the new one, whose file was written; the old file stays without rights."""
    (before,) = {one.role: one for one in roles(fleet)}[role].keys
    (path,) = rotate(fleet, role, [], NOW)
    status = {one.role: one for one in roles(fleet)}[role]
    assert status.keys == status.here != [before]
    assert path.endswith(f"{role}-{status.keys[0]}.key")
    assert len(list(fleet.keys.glob(f"*{role}*.key"))) == 2


def test_a_device_follows_every_rotation(fleet, tmp_path):
    """A board that was provisioned before them all believes the metadata after them, and knows the new online key."""
    import time

    first = trust_of(fleet).root
    for role in ("online", "release", "root", "online"):
        rotate(fleet, role, [], time.time())
    board = TrustedMetadata(tmp_path / "tuf", first, time.time)
    for name, data in in_force(fleet).items():
        board.hear(name, data)
    assert board.refresh()
    assert board.online_key == online_signer(fleet).public_key
    assert trust_of(fleet).root == in_force(fleet)["5.root"]


def test_keys_on_a_stick_are_used_from_there(fleet, tmp_path):
    """With the root's key moved away nothing can be replaced, until its directory is given; a new root key goes there."""
    stick = tmp_path / "stick"
    stick.mkdir()
    shutil.move(fleet.keys / "metadata-root.key", stick)
    with pytest.raises(FleetError, match="no root key of this fleet is here"):
        rotate(fleet, "online", [], NOW)
    rotate(fleet, "online", [stick], NOW)
    (path,) = rotate(fleet, "root", [stick], NOW)
    assert path.startswith(str(stick))
    assert not list(fleet.keys.glob("*root*.key"))


def test_a_threshold_is_kept(fleet):
    """Two of three release keys must be at hand from then on."""
    rotate(fleet, "release", [], NOW, count=3, threshold=2)
    held = signers(fleet, in_force(fleet), "release")
    assert len(held) == 3
    for path in sorted(fleet.keys.glob("release-*.key"))[:2]:
        path.unlink()
    with pytest.raises(FleetError, match="may not speak for targets"):
        rotate(fleet, "online", [], NOW)


def test_the_commands_say_who_may_sign(fleet):
    """`keys ls` shows roles, thresholds and which keys are here; `keys rotate` names the file it made."""
    run = CliRunner().invoke
    made = run(edgefl, ["keys", "rotate", "online", "--fleet", str(fleet.path)])
    assert made.exit_code == 0, made.output
    assert "online-" in made.output
    shown = run(edgefl, ["keys", "ls", "--fleet", str(fleet.path)]).output
    assert shown.count("1 of 1") == 3
    told = json.loads(run(edgefl, ["keys", "ls", "--json", "--fleet", str(fleet.path)]).output)
    assert [role["role"] for role in told] == ["root", "release", "online"]
    assert all(role["keys"] == role["here"] for role in told)
