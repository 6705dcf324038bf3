"""Provisioning: a bundle of files that makes a board a device of the fleet.

Model: a bundle holds either a key and certificate made here (*ready*), or a one-time *claim* with which the board asks for a
certificate for a key of its own; of the claim's token the fleet keeps a hash. Bundles are written into a hidden directory beside
their destination, the rows are inserted in an open transaction, the bundles are renamed into place, the transaction commits.
Whatever fails before the end leaves neither files nor rows; only a crash between the last rename and the commit leaves bundles
without rows, and the next run refuses to overwrite those and says so.

Rules: an id is given once; all bundles of one call are written or none. A ready bundle's certificate lives as long as the board
may lie in a drawer (ten years); one that a board asks for lives `device_days`, because that board can ask again.
"""

import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgefl.device.identity import ClaimFile
from edgefl.errors import InputError, StoreError
from edgefl.names import check_id
from edgefl.profile import find_profile
from edgefl.server.bundle import device_config, trust_of, write_bundle
from edgefl.server.enrolment import Order, Provisioned, enrol
from edgefl.server.founding import authority_of
from edgefl.store.atomic import store_error, sync_directory
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet

MAX_COUNT = 999
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
            write_bundle(staging, out, config, trust, authority, _new_claim(fleet, now, claim_seconds), now) for config in configs
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


def _staging(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".provision.", suffix=".tmp", dir=out))
    except OSError as error:
        raise store_error("write to", out, error) from error


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
