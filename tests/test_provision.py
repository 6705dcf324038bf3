import hashlib
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from edgefl.cli.main import run
from edgefl.device.config import DeviceConfig, load_bundle
from edgefl.errors import ConfigError, EdgeflError, FleetError, InputError, ProfileError, StoreError
from edgefl.server.bundle import trust_of
from edgefl.server.founding import create_fleet
from edgefl.server.provision import numbered, provision
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.registry import list_devices

ROOT = Path(__file__).parent.parent

SCRIPTS = {"install.sh", "trim.sh", "uninstall.sh"}
FILES = {"device.key", "device.crt", "ca.crt", "root.json", "device.toml", "edgefl-device.service", "camera.conf"} | SCRIPTS


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet of this test's own."""
    return create_fleet(tmp_path / "farm", name="farm", host="hub.example", port=9000)


def ids(fleet: Fleet) -> list[str]:
    """The registered device ids."""
    database = open_database(fleet.database)
    try:
        return [device.id for device in list_devices(database)]
    finally:
        database.close()


def test_a_bundle_holds_everything_a_board_needs(fleet: Fleet, tmp_path: Path) -> None:
    """The configuration carries the profile's limits, the broker's address and the fleet's id; root metadata lies beside it."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out", data="folder:/data")
    bundle = load_bundle(made.bundle)
    profile = fleet.profiles()["rpi-zero-2w"]
    assert {path.name for path in made.bundle.iterdir()} == FILES
    assert bundle.config == DeviceConfig(
        id="cam-01",
        profile="rpi-zero-2w",
        engine="portable",
        threads=profile.threads,
        memory_mb=profile.memory_mb,
        storage_kib=profile.storage_kib,
        host="hub.example",
        port=9000,
        fleet=trust_of(fleet).fleet,
        data="folder:/data",
    )
    assert hashlib.sha256(bundle.root.read_bytes()).hexdigest() == bundle.config.fleet  # no key has been replaced yet


def test_the_key_is_private_and_the_registry_knows_the_certificate(fleet: Fleet, tmp_path: Path) -> None:
    """The key's mode is 0600, and the row holds the serial number of the certificate in the bundle."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    certificate = x509.load_pem_x509_certificates((made.bundle / "device.crt").read_bytes())[0]
    assert stat.S_IMODE((made.bundle / "device.key").stat().st_mode) == 0o600
    assert made.device.certificate == f"{certificate.serial_number:x}"
    assert ids(fleet) == ["cam-01"]


def test_the_unit_is_filled_in_and_valid(fleet: Fleet, tmp_path: Path) -> None:
    """No placeholder is left, the limits are the profile's plus the agent's share, and systemd accepts the directives."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    text = (made.bundle / "edgefl-device.service").read_text()
    assert not [line for line in text.splitlines() if "@" in line and not line.startswith(("#", "SystemCallFilter="))]
    for line in ("MemoryMax=448M", "MemoryHigh=400M", "CPUQuota=350%", "TasksMax=44", "Type=notify", "WatchdogSec=60"):
        assert line in text.splitlines()
    if shutil.which("systemd-analyze"):
        command = ["systemd-analyze", "verify", str(made.bundle / "edgefl-device.service")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        complaints = [line for line in result.stderr.splitlines() if "edgefl" in line and "not executable" not in line]
        assert complaints == []


def test_the_installer_is_a_correct_shell_script(fleet: Fleet, tmp_path: Path) -> None:
    """It parses as POSIX shell, is executable, and refuses an incomplete bundle before it changes anything."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    script = made.bundle / "install.sh"
    for text in (made.bundle / name for name in SCRIPTS):
        assert subprocess.run(["sh", "-n", text], check=False).returncode == 0
        if shutil.which("shellcheck"):
            assert subprocess.run(["shellcheck", text], check=False).returncode == 0
    (made.bundle / "device.crt").unlink()
    result = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "device.crt is missing" in result.stderr


def test_trimming_leaves_what_a_device_runs_and_takes_what_developers_use(tmp_path: Path) -> None:
    """Tests of packages and tools for preparing models go; the packages stay; a second time does no harm."""
    venv = tmp_path / "environment"
    (venv / "bin").mkdir(parents=True)
    site = venv / "site"
    (venv / "bin" / "python").write_text(f"#!/bin/sh\necho {site}\n")
    (venv / "bin" / "python").chmod(0o755)
    stays = ["numpy/__init__.py", "numpy/testing/__init__.py", "onnxruntime/capi/library.so", "edgefl/__init__.py"]
    goes = [
        "numpy/_core/tests/data.bin",
        "numpy/lib/tests/test_io.py",
        "onnxruntime/transformers/gpt.py",
        "onnxruntime/tools/x.py",
    ]
    for name in stays + goes:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    for _ in range(2):
        subprocess.run(["sh", ROOT / "devices" / "trim.sh", venv], check=True)
        assert sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()) == sorted(stays)
    assert subprocess.run(["sh", ROOT / "devices" / "trim.sh", tmp_path], check=False, capture_output=True).returncode == 2


def test_many_devices_are_numbered(fleet: Fleet, tmp_path: Path) -> None:
    """Ids have equal length, so that they sort; a single device keeps its name."""
    assert numbered("cam", 1) == ["cam"]
    assert numbered("cam", 12)[:2] == ["cam-01", "cam-02"]
    assert numbered("cam", 100)[0] == "cam-001"
    provision(fleet, numbered("cam", 3), "rpi-5-8gb", tmp_path / "out")
    assert ids(fleet) == ["cam-01", "cam-02", "cam-03"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cam-01", "cam-02", "cam-03"]


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_an_impossible_count_is_refused(count: int) -> None:
    """The number of devices is bounded."""
    with pytest.raises(InputError):
        numbered("cam", count)


def test_a_known_id_leaves_neither_files_nor_rows(fleet: Fleet, tmp_path: Path) -> None:
    """One known id among three: nothing of the three is made."""
    provision(fleet, ["cam-02"], "rpi-5-8gb", tmp_path / "first")
    with pytest.raises(FleetError, match="'cam-02' already exists"):
        provision(fleet, ["cam-01", "cam-02", "cam-03"], "rpi-5-8gb", tmp_path / "out")
    assert ids(fleet) == ["cam-02"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_in_the_middle_leaves_neither_files_nor_rows(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second bundle cannot be moved into place: the first goes away again."""
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "cam-02":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StoreError, match="disk full"):
        provision(fleet, ["cam-01", "cam-02"], "rpi-5-8gb", tmp_path / "out")
    assert ids(fleet) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_bundle_is_not_touched(fleet: Fleet, tmp_path: Path) -> None:
    """A directory of that name is refused and keeps its content."""
    (tmp_path / "out" / "cam-01").mkdir(parents=True)
    (tmp_path / "out" / "cam-01" / "note").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        provision(fleet, ["cam-01"], "rpi-5-8gb", tmp_path / "out")
    assert (tmp_path / "out" / "cam-01" / "note").read_text() == "mine"
    assert ids(fleet) == []


@pytest.mark.parametrize("device", ["Cam", "a/b", "../up", "#", "edgefl-server", ""])
def test_a_dangerous_id_is_refused(fleet: Fleet, tmp_path: Path, device: str) -> None:
    """Nothing is written for it, not even the output directory."""
    with pytest.raises(InputError):
        provision(fleet, [device], "rpi-5-8gb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_board_that_cannot_train_is_refused_with_the_reason(fleet: Fleet, tmp_path: Path) -> None:
    """The profile's own reason is in the message."""
    with pytest.raises(ProfileError, match="no wheels for 32-bit ARM"):
        provision(fleet, ["cam-01"], "rpi-zero-w", tmp_path / "out")
    with pytest.raises(ProfileError, match="unknown profile"):
        provision(fleet, ["cam-01"], "rpi-99", tmp_path / "out")
    with pytest.raises(InputError, match="twice"):
        provision(fleet, ["cam-01", "cam-01"], "rpi-5-8gb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", ['quote " and \\ backslash', "ümlaut 📷", "tab\tand\x7f"])
def test_any_source_text_survives_the_file(fleet: Fleet, tmp_path: Path, data: str) -> None:
    """What `--data` says is what the device reads."""
    (made,) = provision(fleet, ["cam-01"], "rpi-5-8gb", tmp_path / "out", data=data)
    assert load_bundle(made.bundle).config.data == data


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("threads = 3", "threads = 0", "threads"),
        ('id = "cam-01"', 'id = "Cam"', "Cam"),
        ("port = 9000", "", "port"),
        ("memory_mb", "memory", "memory"),
        ('engine = "portable"', 'engine = "none"', "engine"),
        ('fleet = "', 'fleet = "xx', "fleet"),
    ],
)
def test_a_wrong_device_file_names_the_place(fleet: Fleet, tmp_path: Path, old: str, new: str, text: str) -> None:
    """A hand-edited device.toml fails with file and key."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    file = made.bundle / "device.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=text) as caught:
        load_bundle(file)
    assert str(file) in str(caught.value)


def test_an_incomplete_bundle_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """A missing key is said before anything connects; so is a missing bundle."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    (made.bundle / "device.key").unlink()
    with pytest.raises(ConfigError, match=r"device\.key is missing"):
        load_bundle(made.bundle)
    with pytest.raises(ConfigError, match=r"no device\.toml"):
        load_bundle(tmp_path / "none")


def test_systemds_state_directory_wins(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a board the state lies where systemd says; on a bench, in the bundle."""
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert load_bundle(made.bundle).state == made.bundle / "state"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edgefl")
    assert load_bundle(made.bundle).state == Path("/var/lib/edgefl")


def test_a_damaged_fleet_gives_words(fleet: Fleet, tmp_path: Path) -> None:
    """A broken authority or signing key is found before anything is written."""
    fleet.intermediate_key.write_text("nonsense")
    with pytest.raises(EdgeflError, match="authority is damaged"):
        provision(fleet, ["cam-01"], "rpi-5-8gb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_provision_list_and_show(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, with the fleet from the environment: provision two, list them, show one as JSON."""
    monkeypatch.setenv("EDGEFL_FLEET", str(fleet.path))
    assert run(["provision", "cam", "--count", "2", "--profile", "rpi-cm4", "--out", str(tmp_path / "out")]) == 0
    assert run(["devices", "ls"]) == 0
    assert "cam-02" in capsys.readouterr().out
    assert run(["devices", "ls", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["cam-01", "cam-02"]
    assert run(["devices", "show", "cam-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "rpi-cm4"
    assert run(["devices", "show", "cam-03"]) == 2
    assert "no device 'cam-03'" in capsys.readouterr().err
