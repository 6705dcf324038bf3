"""How things are on the board when an installation asks whether it may go on: local time, battery, disk, a round in progress."""

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from edgefl.codec.memory import memory_bytes
from edgefl.codec.precision import ROUNDS
from edgefl.codec.weights import weights_length
from edgefl.device.defer import Conditions, Policy
from edgefl.device.power import battery_percent
from edgefl.device.state import Session
from edgefl.errors import StoreError
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import FileRef
from edgefl.wire.releases import Manifest


def conditions(
    session: Session, policy: Policy, blobs: BlobStore, partial: Path, *, clock: float, wall: float, reserve: int
) -> Conditions:
    """What `edgefl.device.defer` judges, for the version on its way.

    Args:
        session: of the model.
        policy: what need not be looked at is not.
        blobs: files of all models.
        partial: directory of files that are being fetched.
        clock: monotonic seconds.
        wall: seconds since 1970.
        reserve: bytes of disk to leave free.
    """
    install = session.install
    return Conditions(
        minute=local_minute(wall),
        battery=battery_percent() if policy.battery else None,
        training=session.busy,
        waited=clock - install.since if install else 0.0,
        missing=_missing(install.manifest.files, blobs, partial) if install else 0,
        working=working_bytes(install.manifest) if install else 0,
        free=free_bytes(blobs) - reserve,
    )


def working_bytes(manifest: Manifest) -> int:
    """What training a version takes on disk beside its files: weights of two rounds, and the memory of updates; 0 if it does not.

    Weights of a round are as long as those of the push, or up to the bound of their precision: the least of those that rounds are
    sent in that holds these.
    """
    if not manifest.trains:
        return 0
    layout, pushed = manifest.layout, manifest.file("weights").length
    bounds = (weights_length(layout, precision) for precision in ROUNDS)
    return 2 * min((bound for bound in bounds if bound >= pushed), default=pushed) + memory_bytes(layout)


def room_for(length: int, blobs: BlobStore, reserve: int) -> None:
    """Raises StoreError when so many bytes would eat into the reserve."""
    if (free := free_bytes(blobs)) < length + reserve:
        raise StoreError("not enough disk space for new weights", expected=f"{length + reserve} bytes free", found=f"{free}")


def local_minute(wall: float) -> int:
    """Minute of the local day, 0 to 1439."""
    local = time.localtime(wall)
    return 60 * local.tm_hour + local.tm_min


def free_bytes(blobs: BlobStore) -> int:
    """Of the disk that the files are on; 0 if it cannot be found out."""
    try:
        return shutil.disk_usage(blobs.root).free
    except OSError:
        return 0


def _missing(files: Iterable[FileRef], blobs: BlobStore, partial: Path) -> int:
    """Bytes that are not on disk yet; an incomplete file has its room already, but counts as missing with one byte at least."""
    missing = 0
    for ref in files:
        if not blobs.has(ref.sha256):
            taken = 0
            with contextlib.suppress(OSError):
                taken = (partial / f"{ref.sha256.hex()}.part").stat().st_blocks * 512
            missing += max(1, ref.length - taken)
    return missing
