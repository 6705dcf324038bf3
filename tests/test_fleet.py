import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgefl.cli.main import COMMANDS, run
from edgefl.errors import FleetError, InputError, StoreError
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.keys import online_signer, roles
from edgefl.server.provision import provision
from edgefl.store.database import open_database
from edgefl.store.fleet import REQUIRED, Fleet
from edgefl.store.registry import Device, add_devices, get_device, list_devices


def test_a_new_fleet_opens_again(tmp_path: Path) -> None:
    """What was created is what is opened: settings, authority, three different signing keys."""
    made = create_fleet(tmp_path / "deep" / "farm", name="farm", host="hub.example", port=9000)
    fleet = Fleet.open(tmp_path / "deep" / "farm")
    assert fleet == made
    assert (fleet.settings.name, fleet.settings.host, fleet.settings.port) == ("farm", "hub.example", 9000)
    assert authority_of(fleet).fleet == "farm"
    speaking = {role.role: role for role in roles(fleet)}
    assert speaking["online"].keys == [online_signer(fleet).public_key.hex()[:16]]
    assert len({key for role in speaking.values() for key in role.keys}) == 3


def test_private_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    """Mode 0600 for every key, 0700 for the whole directory."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    keys = [*fleet.path.rglob("*.key"), *fleet.path.rglob("*.pem")]
    assert len(keys) == 7
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(fleet.path.stat().st_mode) == 0o700


def test_a_fleet_is_never_overwritten(tmp_path: Path) -> None:
    """A second creation is refused and changes nothing; a directory with anything in it is refused too."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    before = (fleet.keys / "release.key").read_bytes()
    with pytest.raises(FleetError, match="already in use"):
        create_fleet(tmp_path / "farm", name="farm")
    assert (fleet.keys / "release.key").read_bytes() == before
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    with pytest.raises(FleetError, match="already in use"):
        create_fleet(tmp_path / "used", name="farm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["farm", "used"]


def test_an_empty_directory_may_become_a_fleet(tmp_path: Path) -> None:
    """A mount point that was prepared is no obstacle."""
    (tmp_path / "farm").mkdir()
    assert create_fleet(tmp_path / "farm", name="farm").database.is_file()


@pytest.mark.parametrize(
    ("name", "host"), [("Farm", "h"), ("", "h"), ("farm", ""), ("farm", "a b"), ("farm", "x" * 254), ("farm", "h\n")]
)
def test_an_impossible_name_or_host_leaves_nothing(tmp_path: Path, name: str, host: str) -> None:
    """What cannot stand in a certificate is refused before anything is written."""
    with pytest.raises(InputError):
        create_fleet(tmp_path / "farm", name=name, host=host)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_said_in_words(tmp_path: Path) -> None:
    """A parent that is a file gives a store error, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="create"):
        create_fleet(tmp_path / "file" / "farm", name="farm")


def test_a_missing_fleet_says_how_to_make_one(tmp_path: Path) -> None:
    """The message holds the command."""
    with pytest.raises(FleetError, match="edgefl init"):
        Fleet.open(tmp_path / "none")


@pytest.mark.parametrize("name", [name for name in REQUIRED if "." in name])
def test_an_incomplete_fleet_names_what_is_missing(tmp_path: Path, name: str) -> None:
    """Each required file is missed by name."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    (fleet.path / name).unlink()
    with pytest.raises(FleetError, match=name):
        Fleet.open(fleet.path)


@pytest.mark.parametrize("text", ["", 'name = "farm"\nport = 0', 'name = "farm"\nhots = "h"', 'name = "Farm"', "name = 1"])
def test_a_malformed_fleet_file_is_refused(tmp_path: Path, text: str) -> None:
    """Unknown keys and impossible values are errors of the input family."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    (fleet.path / "fleet.toml").write_text(text)
    with pytest.raises(InputError):
        Fleet.open(fleet.path)


def test_the_fleets_own_profile_wins(tmp_path: Path) -> None:
    """A file of the same name in FLEET/profiles replaces the shipped one; others stay."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    shipped = fleet.profiles()["rpi-zero-2w"]
    source = Path(__file__).parent.parent / "firmware_profiles" / "rpi-zero-2w.toml"
    changed = source.read_text().replace("storage_kib = 8192", "storage_kib = 512")
    (fleet.path / "profiles" / "rpi-zero-2w.toml").write_text(changed)
    assert shipped.storage_kib == 8192
    assert fleet.profiles()["rpi-zero-2w"].storage_kib == 512
    assert "rpi-5-8gb" in fleet.profiles()


def test_the_registry_keeps_devices_and_refuses_twins(tmp_path: Path) -> None:
    """Rows come back as they were entered, sorted; a known id takes the whole transaction back."""
    database = open_database(tmp_path / "db")
    first, second = Device("b", "p", "ab12", 1.0), Device("a", "p", "cd34", 2.0)
    with database:
        add_devices(database, [first, second])
    with pytest.raises(FleetError, match="'b' already exists"), database:
        add_devices(database, [Device("c", "p", "ef", 3.0), first])
    assert list_devices(database) == [second, first]
    assert get_device(database, "b") == first
    with pytest.raises(FleetError, match="no device 'c'"):
        get_device(database, "c")
    database.close()


def test_help_names_every_command_and_imports_none() -> None:
    """`edgefl --help` is instant: it loads neither torch nor any command's module."""
    code = (
        "import sys\nfrom edgefl.cli.main import run\ncode = run(['--help'])\n"
        "loaded = [m for m in sys.modules if m.startswith(('torch', 'onnx', 'amqtt', 'paho', 'cryptography', 'edgefl.cli.'))]\n"
        "assert set(loaded) == {'edgefl.cli.main', 'edgefl.cli.process', 'edgefl.cli.text'}, loaded\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nonsense"], 2, "No such command"),
        (["devices", "ls", "--fleet", "/nonexistent"], 2, "edgefl init"),
        (["provision", "cam-01", "--profile", "p"], 2, "--out"),
        (["init", "/tmp", "--name", "Not A Name"], 2, "cannot be used"),  # noqa: S108 - never written to
        (["broker", "--port", "0"], 2, "--port"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    """Whatever a person mistypes, there is no traceback."""
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert text in printed.err


def test_a_bug_is_one_line_unless_debugged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is code 70 and one line; with EDGEFL_DEBUG the traceback is there too."""
    monkeypatch.setattr("edgefl.store.fleet.Fleet.open", lambda _path: 1 // 0)
    monkeypatch.delenv("EDGEFL_DEBUG", raising=False)
    assert run(["devices", "ls"]) == 70
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("EDGEFL_DEBUG", "1")
    assert run(["devices", "ls"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    """`python -m edgefl init` makes a fleet, and says what to do with the root key."""
    command = [sys.executable, "-m", "edgefl", "init", str(tmp_path / "farm"), "--host", "hub.example", "--port", "9001"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "root.key" in result.stdout
    assert Fleet.open(tmp_path / "farm").settings.port == 9001


def test_the_root_key_may_live_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fleet directory never holds it, and everything else works without it: provisioning, opening, revoking."""
    stick = tmp_path / "stick"
    stick.mkdir()
    assert run(["init", str(tmp_path / "farm"), "--root", str(stick)]) == 0
    assert f"keep {stick / 'root.key'} offline" in capsys.readouterr().out
    assert not (tmp_path / "farm" / "ca" / "root.key").exists()
    assert sorted(path.name for path in stick.iterdir()) == ["metadata-root.key", "root.crt", "root.key"]
    assert (stick / "root.key").stat().st_mode & 0o777 == 0o600
    fleet = Fleet.open(tmp_path / "farm")
    assert fleet.root_certificate.read_bytes() == (stick / "root.crt").read_bytes()
    provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "bundles")
    assert run(["devices", "revoke", "cam-01", "--fleet", str(fleet.path)]) == 4  # no broker runs here


@pytest.mark.parametrize("fault", ["missing", "inside", "used", "fleet exists"])
def test_a_place_for_the_root_key_that_cannot_be_used_leaves_nothing(tmp_path: Path, fault: str) -> None:
    """Refused in words; neither a fleet nor a stray key is left, and no other root's key is overwritten."""
    place = tmp_path / "farm" / "stick" if fault == "inside" else tmp_path / "stick"
    if fault != "missing":
        place.mkdir(parents=True)
    if fault == "used":
        (place / "root.key").write_text("another's")
    if fault == "fleet exists":
        create_fleet(tmp_path / "farm", name="farm")
    with pytest.raises(FleetError):
        create_fleet(tmp_path / "farm", name="farm", root=place)
    if fault == "used":
        assert (place / "root.key").read_text() == "another's"
    else:
        assert not (place / "root.key").exists()
    assert (tmp_path / "farm" / "fleet.toml").exists() == (fault == "fleet exists")
