"""Provisioning: a bundle of files that makes a board a device of the fleet.

Model: bundles are written into a hidden directory beside their destination, the registry rows are inserted in an open
transaction, the bundles are renamed into place, the transaction commits. Whatever fails before the end leaves neither files nor
rows; only a crash between the last rename and the commit leaves bundles without rows, and the next run refuses to overwrite
those and says so.

Rules: an id is given once; keys are made here and exist only in the bundle; all bundles of one call are written or none.
"""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgefl.device.config import DeviceConfig
from edgefl.errors import InputError, ProfileError, StoreError
from edgefl.identity.authority import Authority
from edgefl.names import check_id
from edgefl.profile import Profile, find_profile
from edgefl.server.founding import authority_of, release_signer
from edgefl.store.atomic import store_error, sync_directory, write_file
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.registry import Device, add_devices
from edgefl.strict_toml import write_toml

MAX_COUNT = 999
HOUSEKEEPING_MB = 192
"""MiB for the agent itself, on top of what the training process may use: the unit's memory limit is the sum."""
CACHE_MB = 48
"""MiB below that limit at which the kernel begins to take back caches."""
TASKS = 32
"""Processes and threads besides the trainer's, generously."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A device that exists now, and where its bundle is."""

    device: Device
    bundle: Path


def numbered(prefix: str, count: int) -> list[str]:
    """`count` ids: the prefix itself for one, otherwise `cam-01` to `cam-NN` (three digits from a hundred on).

    Raises:
        InputError: an id cannot be used, or the count is out of range.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InputError("that many devices cannot be provisioned at once", expected=f"1 to {MAX_COUNT}", found=str(count))
    if count == 1:
        return [check_id(prefix)]
    width = max(2, len(str(count)))
    return [check_id(f"{prefix}-{number:0{width}}") for number in range(1, count + 1)]


def provision(fleet: Fleet, ids: Sequence[str], profile: str, out: Path, *, data: str = "") -> list[Provisioned]:
    """Make devices: one bundle `out/ID` and one registry row for each id.

    Args:
        fleet: whose devices they will be.
        ids: distinct device ids.
        profile: name of a shipped profile or one of the fleet's own.
        out: directory that receives the bundles; created when missing.
        data: what `device.toml` names as source of examples.

    Raises:
        InputError: an id cannot be used or is given twice, or its bundle exists.
        ProfileError: no such profile, or one that cannot train.
        FleetError: a device of this id exists, or the fleet's keys are damaged.
        StoreError: a file cannot be written; nothing is left behind.
    """
    for device in ids:
        check_id(device)
        if (out / device).exists():
            raise InputError(
                f"{out / device} exists already", remedy="Choose another --out, or delete it if an interrupted run left it"
            )
    if len(set(ids)) != len(ids):
        raise InputError("the same device id twice", found=", ".join(ids))
    chosen = find_profile(profile, fleet.profiles())
    if chosen.engine == "none":
        raise ProfileError(
            f"profile {profile!r} ({chosen.title}) cannot train", found=chosen.reason, remedy="Choose a profile of another board"
        )
    authority = authority_of(fleet)
    release_key = release_signer(fleet).public_key.hex()
    staging = _staging(out)
    try:
        devices = [
            _write_bundle(staging / device, device_config(fleet, chosen, device, release_key, data), authority) for device in ids
        ]
        _commit(fleet, devices, staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [Provisioned(device, out / device.id) for device in devices]


def device_config(fleet: Fleet, profile: Profile, device: str, release_key: str, data: str) -> DeviceConfig:
    """What the bundle's `device.toml` will say. Raises ProfileError when the profile cannot train."""
    if profile.engine == "none":
        raise ProfileError(f"profile {profile.name!r} cannot train", found=profile.reason)
    return DeviceConfig(
        id=device,
        profile=profile.name,
        engine=profile.engine,
        threads=profile.threads,
        memory_mb=profile.memory_mb,
        storage_kib=profile.storage_kib,
        host=fleet.settings.host,
        port=fleet.settings.port,
        release_key=release_key,
        data=data,
    )


def _staging(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".provision.", suffix=".tmp", dir=out))
    except OSError as error:
        raise store_error("write to", out, error) from error


def _write_bundle(directory: Path, config: DeviceConfig, authority: Authority) -> Device:
    """Write one bundle into a new directory."""
    identity = authority.device(config.id)
    comments = {
        "id": "Written by `edgefl provision`. The limits come from the profile; the board may lower them.",
        "host": "Where the broker is.",
        "release_key": "Public key of the fleet: only models signed with it are loaded.",
        "data": "Where the examples come from; they never leave the board.",
        "state": "Models and unsent updates; systemd's StateDirectory wins over it.",
    }
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise store_error("create", directory, error) from error
    write_file(directory / "device.key", identity.key, 0o600)
    write_file(directory / "device.crt", identity.certificate)
    write_file(directory / "ca.crt", authority.root)
    write_file(directory / "device.toml", write_toml(config, comments).encode())
    write_file(directory / "edgefl-device.service", _unit(config).encode())
    write_file(directory / "camera.conf", _template("camera.conf").encode())
    for script in ("install.sh", "trim.sh", "uninstall.sh"):
        write_file(directory / script, _template(script).encode(), 0o755)
    return Device(config.id, config.profile, identity.serial, time.time())


def _unit(config: DeviceConfig) -> str:
    """The systemd unit with the limits of this device."""
    values = {
        "DEVICE": config.id,
        "MEMORY_HIGH": f"{config.memory_mb + HOUSEKEEPING_MB - CACHE_MB}M",
        "MEMORY_MAX": f"{config.memory_mb + HOUSEKEEPING_MB}M",
        "CPU_QUOTA": f"{100 * config.threads + 50}%",
        "TASKS_MAX": str(TASKS + 4 * config.threads),
    }
    unit = _template("edgefl-device.service")
    for name, value in values.items():
        unit = unit.replace(f"@{name}@", value)
    return unit


def _commit(fleet: Fleet, devices: Sequence[Device], staging: Path, out: Path) -> None:
    """Enter the devices and move their bundles into place, or neither."""
    moved: list[Path] = []
    database = open_database(fleet.database)
    try:
        with database:
            add_devices(database, list(devices))
            for device in devices:
                (staging / device.id).rename(out / device.id)
                moved.append(out / device.id)
            sync_directory(out)
    except BaseException as error:
        for bundle in moved:
            shutil.rmtree(bundle, ignore_errors=True)
        if isinstance(error, OSError):
            raise store_error("write to", out, error) from error
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot enter devices into {fleet.database}", found=str(error), remedy="Try again") from error
        raise
    finally:
        database.close()


def _template(name: str) -> str:
    """A file of `devices/`: inside an installed package, or at the top of a source checkout."""
    package = Path(str(resources.files("edgefl")))
    for path in (package / "devices" / name, package.parent / "devices" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise StoreError(f"this installation of edgefl lacks devices/{name}", remedy="Install edgefl again")
