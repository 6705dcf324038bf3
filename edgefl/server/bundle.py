"""The files of a device's bundle: what it may use and believe, its key or claim, and what installs it on a board."""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgefl.device.config import DeviceConfig
from edgefl.device.identity import CLAIM_FILE, ClaimFile
from edgefl.errors import ProfileError, StoreError
from edgefl.identity.authority import Authority
from edgefl.identity.repository import newest_root
from edgefl.profile import Profile
from edgefl.server.enrolment import Provisioned
from edgefl.store.atomic import store_error, write_file
from edgefl.store.database import open_database
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.registry import Device
from edgefl.strict_toml import write_toml

HOUSEKEEPING_MB = 192
"""MiB for the agent itself, on top of what the training process may use: the unit's memory limit is the sum."""
CACHE_MB = 48
"""MiB below that limit at which the kernel begins to take back caches."""
TASKS = 32
"""Processes and threads besides the trainer's, generously."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a device must know to believe the fleet: its id, and the root metadata in force."""

    fleet: str
    root: bytes


def trust_of(fleet: Fleet) -> Trust:
    """Of a fleet. Raises FleetError or StoreError."""
    with closing(open_database(fleet.database)) as database:
        known = documents(database)
    number, _ = newest_root(known)
    return Trust(hashlib.sha256(known["1.root"]).hexdigest(), known[f"{number}.root"])


def device_config(fleet: Fleet, profile: Profile, device: str, trust: Trust, data: str) -> DeviceConfig:
    """What the bundle's `device.toml` will say. Raises ProfileError when the profile can run no model."""
    if profile.engine == "none":
        raise ProfileError(
            f"profile {profile.name!r} ({profile.title}) can run no model",
            found=profile.reason,
            remedy="Choose a profile of another board",
        )
    return DeviceConfig(
        id=device,
        profile=profile.name,
        engine=profile.engine,
        threads=profile.threads,
        memory_mb=profile.memory_mb,
        storage_kib=profile.storage_kib,
        host=fleet.settings.host,
        port=fleet.settings.port,
        fleet=trust.fleet,
        data=data,
    )


def write_bundle(
    staging: Path, out: Path, config: DeviceConfig, trust: Trust, authority: Authority, claim: ClaimFile | None, now: float
) -> Provisioned:
    """Write one bundle into a new directory.

    Args:
        staging: where the directory is made.
        out: where it will be.
        config: what its `device.toml` says.
        trust: what it believes.
        authority: who signs a ready bundle's certificate.
        claim: for a bundle without one.
        now: seconds since 1970.

    Raises:
        StoreError: a file cannot be written.
    """
    comments = {
        "id": "Written by `edgefl provision`. The limits come from the profile; the board may lower them.",
        "host": "Where the broker is.",
        "fleet": "Which fleet this is: SHA-256 of its first root metadata.",
        "data": "Where the examples come from; they never leave the board.",
        "state": "Models and unsent updates; systemd's StateDirectory wins over it.",
    }
    directory = staging / config.id
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise store_error("create", directory, error) from error
    serial = ""
    if claim is None:
        identity = authority.device(config.id)
        serial = identity.serial
        write_file(directory / "device.key", identity.key, 0o600)
        write_file(directory / "device.crt", identity.certificate)
    else:
        about = {"token": "Good for one board, once, until it expires. The board deletes this file when it has its certificate."}
        write_file(directory / CLAIM_FILE, write_toml(claim, about).encode(), 0o600)
    write_file(directory / "ca.crt", authority.root)
    write_file(directory / "root.json", trust.root)
    write_file(directory / "device.toml", write_toml(config, comments).encode())
    write_file(directory / "edgefl-device.service", _unit(config).encode())
    write_file(directory / "camera.conf", _template("camera.conf").encode())
    for script in ("install.sh", "trim.sh", "uninstall.sh"):
        write_file(directory / script, _template(script).encode(), 0o755)
    return Provisioned(Device(config.id, config.profile, serial, now), out / config.id, claim)


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


def _template(name: str) -> str:
    """A file of `devices/`: inside an installed package, or at the top of a source checkout."""
    package = Path(str(resources.files("edgefl")))
    for path in (package / "devices" / name, package.parent / "devices" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise StoreError(f"this installation of edgefl lacks devices/{name}", remedy="Install edgefl again")
