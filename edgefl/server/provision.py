"""Provisioning: a bundle of files that makes a board a device of the fleet.

Model: a bundle holds either a key and certificate made here (*ready*), or a one-time *claim* with which the board asks for a
certificate for a key of its own; of the claim's token the fleet keeps a hash. Bundles are written into a hidden directory beside
their destination, the rows are inserted in an open transaction, the bundles are renamed into place, the transaction commits.
Whatever fails before the end leaves neither files nor rows; only a crash between the last rename and the commit leaves bundles
without rows, and the next run refuses to overwrite those and says so.

Rules: an id is given once; all bundles of one call are written or none. A ready bundle's certificate lives as long as the board
may lie in a drawer (ten years); one that a board asks for lives `device_days`, because that board can ask again.
"""

import hashlib
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgefl.device.config import DeviceConfig
from edgefl.device.identity import CLAIM_FILE, ClaimFile
from edgefl.errors import InputError, ProfileError, StoreError
from edgefl.identity.authority import Authority
from edgefl.identity.repository import newest_root
from edgefl.names import check_id
from edgefl.profile import Profile, find_profile
from edgefl.server.enrolment import Order, Provisioned, enrol
from edgefl.server.founding import authority_of
from edgefl.store.atomic import store_error, sync_directory, write_file
from edgefl.store.database import open_database
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.registry import Device
from edgefl.strict_toml import write_toml

MAX_COUNT = 999
HOUSEKEEPING_MB = 192
"""MiB for the agent itself, on top of what the training process may use: the unit's memory limit is the sum."""
CACHE_MB = 48
"""MiB below that limit at which the kernel begins to take back caches."""
TASKS = 32
"""Processes and threads besides the trainer's, generously."""


TOKEN_BYTES = 32


Finish = Callable[[Sequence[Provisioned]], None]


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
    """Make devices of one profile, with ready bundles; as `provision_all`."""
    return provision_all(fleet, [Order(device, profile, data) for device in ids], out)


def provision_all(
    fleet: Fleet,
    orders: Sequence[Order],
    out: Path,
    *,
    claim_seconds: float | None = None,
    again: bool = False,
    finish: Finish = lambda _: None,
) -> list[Provisioned]:
    """Make devices: one bundle `out/ID` and one registry row for each.

    Args:
        fleet: whose devices they will be.
        orders: with distinct ids.
        out: directory that receives the bundles; created when missing.
        claim_seconds: how long a claim is open; None for ready bundles.
        again: the devices exist, and their boards may claim anew.
        finish: called before anything counts, with what was made; if it raises, nothing is left behind.

    Raises:
        InputError: an id cannot be used or is given twice, or its bundle exists.
        ProfileError: no such profile, or one that cannot train.
        FleetError: a device of this id exists (with `again`: does not, or was revoked), or the fleet's keys are damaged.
        StoreError: a file cannot be written; nothing is left behind.
    """
    _check_orders(orders, out)
    profiles = fleet.profiles()
    trust = trust_of(fleet)
    configs = [device_config(fleet, find_profile(one.profile, profiles), one.id, trust, one.data) for one in orders]
    authority, now = authority_of(fleet), time.time()
    staging = _staging(out)
    try:
        made = [
            _write_bundle(staging, out, config, trust, authority, _new_claim(fleet, now, claim_seconds), now)
            for config in configs
        ]
        _commit(fleet, made, {one.id: one.tags for one in orders}, staging, out, again=again, finish=finish)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _check_orders(orders: Sequence[Order], out: Path) -> None:
    for one in orders:
        check_id(one.id)
        if (out / one.id).exists():
            raise InputError(
                f"{out / one.id} exists already", remedy="Choose another --out, or delete it if an interrupted run left it"
            )
    if len({one.id for one in orders}) != len(orders):
        raise InputError("the same device id twice", found=", ".join(one.id for one in orders)[:200])


def _new_claim(fleet: Fleet, now: float, seconds: float | None) -> ClaimFile | None:
    if not seconds:
        return None
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return ClaimFile(token=token, host=fleet.settings.host, port=fleet.settings.claim_port, expires=int(now + seconds))


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
    """What the bundle's `device.toml` will say. Raises ProfileError when the profile cannot train."""
    if profile.engine == "none":
        raise ProfileError(
            f"profile {profile.name!r} ({profile.title}) cannot train",
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


def _staging(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".provision.", suffix=".tmp", dir=out))
    except OSError as error:
        raise store_error("write to", out, error) from error


def _write_bundle(
    staging: Path, out: Path, config: DeviceConfig, trust: Trust, authority: Authority, claim: ClaimFile | None, now: float
) -> Provisioned:
    """Write one bundle into a new directory."""
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


def _commit(
    fleet: Fleet,
    made: Sequence[Provisioned],
    tags: dict[str, tuple[str, ...]],
    staging: Path,
    out: Path,
    *,
    again: bool,
    finish: Finish,
) -> None:
    """Enter the devices and move their bundles into place, or neither."""
    moved: list[Path] = []
    database = open_database(fleet.database)
    try:
        with database:
            enrol(database, made, tags, again=again)
            for one in made:
                (staging / one.device.id).rename(one.bundle)
                moved.append(one.bundle)
            sync_directory(out)
            finish(made)
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
