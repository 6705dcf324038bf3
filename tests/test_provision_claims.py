"""Provisioning with claims, from CSV files, and with labels."""

import html
import json
import re
import shutil
import stat
import subprocess
import xml.etree.ElementTree as ET
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.cli.main import run
from edgefl.cli.provision import claim_seconds
from edgefl.device.claimcode import claim_code, read_code
from edgefl.device.config import load_bundle
from edgefl.device.identity import ClaimFile, open_claim
from edgefl.errors import FleetError, InputError, ProfileError, StoreError
from edgefl.server import labels
from edgefl.server.batch import read_batch
from edgefl.server.enrolment import Order
from edgefl.server.founding import create_fleet
from edgefl.server.labels import FORMS, Label, label_of
from edgefl.server.provision import provision_all
from edgefl.store.audit import events
from edgefl.store.credentials import certificates_of, digest, find_claim
from edgefl.store.database import open_database, transaction
from edgefl.store.fleet import Fleet
from edgefl.store.registry import list_devices

FILES = {"root.json", "claim.toml", "ca.crt", "device.toml", "edgefl-device.service", "camera.conf"} | {
    "install.sh",
    "trim.sh",
    "uninstall.sh",
}
with_segno = pytest.mark.skipif(find_spec("segno") is None, reason="segno is not installed")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet of this test's own."""
    return create_fleet(tmp_path / "farm", name="farm", host="hub.example", port=9000, claim_port=9100)


def ask(fleet, question):
    """What the fleet's database says."""
    with closing(open_database(fleet.database)) as database:
        return question(database)


def ids(fleet):
    """The registered device ids."""
    return [device.id for device in ask(fleet, list_devices)]


def edgefl(fleet, capsys, *arguments, code=0):
    """Run a command; what it printed."""
    assert run([*map(str, arguments), "--fleet", str(fleet.path)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_a_claim_bundle_holds_no_key(fleet, tmp_path, capsys):
    """None of its files is a key; the token is printed and in the bundle and has at least 128 bits; the fleet has its hash."""
    out = edgefl(fleet, capsys, "provision", "cam-01", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    bundle = load_bundle(tmp_path / "out" / "cam-01")
    claim = open_claim(bundle)
    assert {path.name for path in bundle.directory.iterdir()} == FILES
    assert stat.S_IMODE((bundle.directory / "claim.toml").stat().st_mode) == 0o600
    assert claim.token in out
    assert len(claim.token) * 6 >= 128
    assert (claim.host, claim.port) == ("hub.example", 9100)
    known = ask(fleet, lambda database: find_claim(database, "cam-01"))
    assert known.token == digest(claim.token.encode())
    assert known.expires - known.created == pytest.approx(86400, abs=2)
    assert ask(fleet, lambda database: certificates_of(database, "cam-01")) == []


def test_a_board_that_has_not_claimed_is_shown_as_such(fleet, tmp_path, capsys):
    """The list of devices says that it has still to claim, and the board's doctor that it has no certificate."""
    edgefl(fleet, capsys, "provision", "cam-01", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    assert "to claim" in edgefl(fleet, capsys, "devices", "ls")
    assert "none yet" in edgefl(fleet, capsys, "devices", "show", "cam-01")
    assert run(["device", "doctor", str(tmp_path / "out" / "cam-01")]) == 4
    assert "has not claimed its certificate" in capsys.readouterr().out


def test_tokens_differ(fleet, tmp_path):
    """Each board has a token of its own."""
    made = provision_all(fleet, [Order(f"c{n}", "rpi-zero-2w") for n in range(5)], tmp_path / "out", claim_seconds=60.0)
    assert len({one.claim.token for one in made}) == 5


def test_claiming_anew_needs_an_existing_device_of_the_same_profile(fleet, tmp_path, capsys):
    """`--again` opens a new claim; not for an unknown or revoked device or another profile, and not without --claim."""
    arguments = ("provision", "cam-01", "--profile", "rpi-zero-2w", "--out")
    assert "no device" in edgefl(fleet, capsys, *arguments, tmp_path / "a", "--claim", "--again", code=2)
    edgefl(fleet, capsys, *arguments, tmp_path / "a")
    assert "already exists" in edgefl(fleet, capsys, *arguments, tmp_path / "b", "--claim", code=2)
    edgefl(fleet, capsys, *arguments, tmp_path / "b", "--claim", "--again")
    wrong = ("provision", "cam-01", "--profile", "rpi-4b-2gb", "--claim", "--again", "--out", tmp_path / "c")
    assert "another profile" in edgefl(fleet, capsys, *wrong, code=2)
    assert "--again is for claims" in edgefl(fleet, capsys, *arguments, tmp_path / "c", "--again", code=2)
    with closing(open_database(fleet.database)) as database, transaction(database):
        database.execute("UPDATE devices SET revoked = 1.0")
    assert "was revoked" in edgefl(fleet, capsys, *arguments, tmp_path / "c", "--claim", "--again", code=2)
    assert not list((tmp_path / "c").glob("*"))


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("24h", 86400), (" 7d ", 604800), ("1m", 60), ("30d", 2592000)])
def test_times_are_read(text, seconds):
    """Minutes, hours and days."""
    assert claim_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "31d", "-1h", "1.5h", "1h30m", "99999999d", "²h"])
def test_other_times_are_refused(text):
    """Nothing is guessed, and no claim is open for ever."""
    with pytest.raises(InputError, match="24h"):
        claim_seconds(text)


def test_a_batch_makes_all_its_devices(fleet, tmp_path, capsys):
    """Every line becomes a device with its profile, data and tags; ready or with a claim."""
    file = tmp_path / "fleet.csv"
    file.write_text(
        "\ufeffid,profile,tags,data\ncam-01,rpi-zero-2w,roof north,npz:/x.npz\n\n cam-02 , rpi-4b-2gb ,,\ncam-03,rpi-4b-2gb\n"
    )
    edgefl(fleet, capsys, "provision", "--from", file, "--claim", "--out", tmp_path / "out")
    assert [(one.id, one.profile) for one in ask(fleet, list_devices)] == [
        ("cam-01", "rpi-zero-2w"), ("cam-02", "rpi-4b-2gb"), ("cam-03", "rpi-4b-2gb")
    ]  # fmt: skip
    assert load_bundle(tmp_path / "out" / "cam-01").config.data == "npz:/x.npz"
    tags = ask(fleet, lambda database: [tuple(row) for row in database.execute("SELECT * FROM tags ORDER BY tag")])
    assert tags == [("cam-01", "north"), ("cam-01", "roof")]
    file.write_text("id,profile\nbox-01,rpi-zero-2w\n")
    edgefl(fleet, capsys, "provision", "--from", file, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "box-01" / "device.key").exists()


MISTAKES = {
    "no column": (b"name,profile\na,b\n", "line 1 column 1"),
    "an unknown column": (b"id,profile,colour\na,rpi-zero-2w,red\n", "line 1 column 3"),
    "a column twice": (b"id,profile,id\n", "line 1 column 3"),
    "no profile column": (b"id\na\n", "line 1 lacks"),
    "nothing": (b"", "line 1 lacks"),
    "no devices": (b"id,profile\n", "no usable number"),
    "a bad id": (b"id,profile\na,rpi-zero-2w\nB!,rpi-zero-2w\n", "line 3 column 'id'"),
    "the server's id": (b"id,profile\nedgefl-server,rpi-zero-2w\n", "line 2 column 'id'"),
    "no profile": (b"id,profile\na,\n", "line 2 column 'profile'"),
    "a short line": (b"id,profile\na\n", "line 2 column 'profile'"),
    "a bad tag": (b"id,profile,tags\na,rpi-zero-2w,ok N/OK\n", "line 2 column 'tags'"),
    "bad data": (b"id,profile,data\na,rpi-zero-2w,\"x\ny\"\n", "line 3 column 'data'"),
    "the same id": (b"id,profile\na,rpi-zero-2w\nb,rpi-zero-2w\na,rpi-zero-2w\n", "line 4 column 'id'"),
    "too many cells": (b"id,profile\na,rpi-zero-2w,x\n", "line 2 column 3"),
    "an open quote": (b'id,profile\n"a,rpi-zero-2w\n', "line 2"),
    "no UTF-8": (b"id,profile\na,rpi-zero-2w\n\xff,x\n", "line 3"),
    "NUL": (b"id,profile\n\0,rpi-zero-2w\n", "line 2"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_batch_is_named_and_nothing_is_made(fleet, tmp_path, capsys, mistake):
    """The message names line and column; no device, bundle or label sheet exists afterwards."""
    text, words = MISTAKES[mistake]
    file = tmp_path / "fleet.csv"
    file.write_bytes(text)
    error = edgefl(fleet, capsys, "provision", "--from", file, "--out", tmp_path / "out", code=2)
    assert words in error
    assert error.count("\n") == 1
    assert ids(fleet) == []
    assert not (tmp_path / "out").exists()


def test_a_batch_is_bounded(tmp_path):
    """A file that is too long is refused before it is read whole; a missing one is named."""
    file = tmp_path / "fleet.csv"
    with file.open("wb") as big:
        big.truncate(64 << 20)
    with pytest.raises(InputError, match="too long"):
        read_batch(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_batch(tmp_path / "none.csv")


def test_all_or_none(fleet, tmp_path, capsys):
    """An unknown profile, an existing device or bundle, or labels that cannot be written leave nothing of the whole batch."""
    file, out = tmp_path / "fleet.csv", tmp_path / "out"
    file.write_text("id,profile\ncam-01,rpi-zero-2w\ncam-02,no-such-board\n")
    edgefl(fleet, capsys, "provision", "--from", file, "--claim", "--out", out, code=2)
    file.write_text("id,profile\ncam-01,rpi-zero-2w\ncam-02,rpi-zero-2w\n")
    (out / "cam-02").mkdir(parents=True)
    edgefl(fleet, capsys, "provision", "--from", file, "--claim", "--out", out, code=2)
    assert [path.name for path in out.iterdir()] == ["cam-02"]
    assert ids(fleet) == []
    assert ask(fleet, events) == []


def test_a_failure_at_the_very_end_leaves_nothing(fleet, tmp_path):
    """When the labels cannot be written, the bundles that were there already go again, and so do rows and claims."""

    def full(_):
        raise StoreError("disk full")

    orders = [Order("cam-01", "rpi-zero-2w"), Order("cam-02", "rpi-zero-2w")]
    with pytest.raises(StoreError):
        provision_all(fleet, orders, tmp_path / "out", claim_seconds=60.0, finish=full)
    assert list((tmp_path / "out").iterdir()) == []
    assert ids(fleet) == []
    assert ask(fleet, lambda database: find_claim(database, "cam-01")) is None
    assert ask(fleet, events) == []


@with_segno
@pytest.mark.parametrize("ending", sorted(FORMS))
def test_a_sheet_has_a_label_for_each_board(fleet, tmp_path, capsys, ending):
    """Id, profile, fleet and expiry of every board; readable by its owner only, because its codes are secrets."""
    sheet = tmp_path / f"labels{ending}"
    arguments = ("provision", "cam", "--count", "3", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    edgefl(fleet, capsys, *arguments, "--labels", sheet)
    text = sheet.read_text()
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    for name in ("cam-01", "cam-02", "cam-03"):
        assert name in text
    assert text.count("rpi-zero-2w") == text.count("fleet farm") == text.count("claim by 20") == 3
    if ending == ".svg":
        assert sum(element.tag.endswith("path") for element in ET.fromstring(text).iter()) >= 3  # noqa: S314 - our own text
    if ending == ".html":
        assert text.count("<svg") == 3
        assert "http" not in text.replace("http://www.w3.org", "")


@with_segno
def test_a_code_can_be_scanned():
    """The modules of the printed code are those of the claim's text, and the text gives the claim back."""
    import segno

    claim = ClaimFile(token="A" * 43, host="hub.example", port=8884, expires=1_800_000_000)
    code = claim_code("farm", "cam-01", claim)
    rows = FORMS[".txt"]([Label(("cam-01",), code)]).splitlines()[1:]
    pixels = [[(char in "█▀", char in "█▄") for char in row] for row in rows if set(row) & set("█▀▄")]
    halves = [tuple(pixel[half] for pixel in row) for row in pixels for half in (0, 1)]
    expected = [tuple(not cell for cell in row) for row in segno.make(code, error="m", micro=False).matrix_iter(border=2)]
    drawn = FORMS[".svg"]([Label(("cam-01",), code)])
    runs = [tuple(map(int, run)) for run in re.findall(r"M(\d+) (\d+)h(\d+)v1H\d+z", drawn)]
    dark = {(x - 2, y - 2) for start, y, length in runs for x in range(start, start + length)}
    assert dark == {(x, y) for y, row in enumerate(expected) for x, light in enumerate(row) if not light}
    assert halves[: len(expected)] == [tuple(bool(cell) for cell in row) for row in expected]
    assert read_code(code, "cam-01") == claim


EVIL = '<script>alert("&")</script>\x1b[2J'


@with_segno
@pytest.mark.parametrize("ending", sorted(FORMS))
def test_labels_are_escaped(ending):
    """Text on a label is text, in markup and on a terminal."""
    text = FORMS[ending]([Label((EVIL, EVIL, EVIL, EVIL), EVIL)])
    if ending == ".txt":
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", re.sub(r"\x1b\[[0-9;]*m", "", text))
    else:
        assert "<script" not in text
        assert html.escape(EVIL)[:20] in text


@with_segno
def test_a_sheet_goes_with_the_devices_that_were_not_made(fleet, tmp_path, capsys, monkeypatch):
    """When the commit fails after the labels were written, the sheet with its tokens goes too."""
    sheet, write = tmp_path / "labels.html", labels.write_sheet

    def then_fail(*arguments):
        write(*arguments)
        raise StoreError("the database cannot be written now")

    monkeypatch.setattr(labels, "write_sheet", then_fail)
    arguments = ("provision", "cam-01", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out", "--labels", sheet)
    edgefl(fleet, capsys, *arguments, code=4)
    assert not sheet.exists()
    assert list((tmp_path / "out").iterdir()) == []
    assert ids(fleet) == []


@with_segno
def test_label_files_are_checked_before_anything_is_made(fleet, tmp_path, capsys):
    """Another ending or an existing file is refused, and no device is made."""
    arguments = ("provision", "cam-01", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out", "--labels")
    assert ".html" in edgefl(fleet, capsys, *arguments, tmp_path / "labels.pdf", code=2)
    (tmp_path / "labels.svg").touch()
    assert "exists already" in edgefl(fleet, capsys, *arguments, tmp_path / "labels.svg", code=2)
    assert ids(fleet) == []


def test_a_ready_bundle_has_a_label_without_a_secret(fleet, tmp_path):
    """Its code names the device only."""
    (made,) = provision_all(fleet, [Order("cam-01", "rpi-zero-2w")], tmp_path / "out")
    label = label_of("farm", made)
    assert label.code == "edgefl://device/farm/cam-01"
    assert label.lines[-1] == "ready bundle"


def test_wrong_combinations_are_refused(fleet, tmp_path, capsys):
    """--from excludes what it says itself; without it id and profile are needed."""
    (tmp_path / "f.csv").write_text("id,profile\ncam-01,rpi-zero-2w\n")
    batch = ("provision", "--out", tmp_path / "out", "--from", tmp_path / "f.csv")
    for more in (("cam-02",), ("--profile", "rpi-zero-2w"), ("--count", "2"), ("--data", "x")):
        edgefl(fleet, capsys, *batch, *more, code=2)
    edgefl(fleet, capsys, "provision", "cam-01", "--out", tmp_path / "out", code=2)
    edgefl(
        fleet, capsys, "provision", "cam-01", "--profile", "x", "--claim", "--expires", "1y", "--out", tmp_path / "out", code=2
    )
    assert ids(fleet) == []


def test_the_audit_tells_everything_in_order(fleet, tmp_path, capsys):
    """`devices audit` shows every event of one device or all, as a table and as JSON."""
    assert "nothing has happened" in edgefl(fleet, capsys, "devices", "audit")
    edgefl(fleet, capsys, "provision", "cam-01", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    edgefl(fleet, capsys, "provision", "cam-02", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    edgefl(fleet, capsys, "devices", "rotate", "cam-01")
    events = json.loads(edgefl(fleet, capsys, "devices", "audit", "--json"))
    assert [(one["event"], one["device"]) for one in events] == [
        ("provisioned", "cam-01"),
        ("certificate-issued", "cam-01"),
        ("claim-opened", "cam-02"),
        ("rotation-asked", "cam-01"),
    ]
    table = edgefl(fleet, capsys, "devices", "audit", "cam-02")
    assert len(table.splitlines()) == 1
    assert "claim-opened" in table
    assert "nothing to rotate" in edgefl(fleet, capsys, "devices", "rotate", "cam-02", code=2)
    edgefl(fleet, capsys, "devices", "rotate", "cam-99", code=2)


def test_the_installer_takes_a_claim_for_a_key(fleet, tmp_path, capsys):
    """With a claim in the bundle it does not ask for key and certificate, but still for everything else."""
    edgefl(fleet, capsys, "provision", "cam-01", "--claim", "--profile", "rpi-zero-2w", "--out", tmp_path / "out")
    bundle = tmp_path / "out" / "cam-01"
    (bundle / "ca.crt").unlink()
    result = subprocess.run(["sh", bundle / "install.sh"], capture_output=True, text=True, check=False)
    assert "ca.crt is missing" in result.stderr
    shutil.copy(fleet.root_certificate, bundle / "ca.crt")
    (bundle / "claim.toml").unlink()
    result = subprocess.run(["sh", bundle / "install.sh"], capture_output=True, text=True, check=False)
    assert "device.key is missing" in result.stderr


def test_a_fleet_of_before_gets_its_settings(fleet):
    """A fleet.toml without the new keys is read with their defaults."""
    path = fleet.path / "fleet.toml"
    path.write_text('name = "farm"\n')
    assert (Fleet.open(fleet.path).settings.claim_port, Fleet.open(fleet.path).settings.device_days) == (8884, 90)
    path.write_text('name = "farm"\nclaim_port = 65535\n')
    with pytest.raises(FleetError, match="claim_port"):
        Fleet.open(fleet.path)


def test_a_profile_that_cannot_train_has_no_claim(fleet, tmp_path):
    """As for ready bundles."""
    cannot = next(name for name, profile in fleet.profiles().items() if profile.engine == "none")
    with pytest.raises(ProfileError):
        provision_all(fleet, [Order("cam-01", cannot)], tmp_path / "out", claim_seconds=60.0)
