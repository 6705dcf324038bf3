"""Setting the demo's stage: a fleet directory, profiles, data shards and bundles, all in one workspace directory.

The boards' profiles are the shipped ones with one difference: the storage that models may use is cut down to the size of the
demo's small model, so that the planner has to choose different widths for them, as it would for a large model on real boards.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgefl.errors import InputError
from edgefl.profile import Profile
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.sources.parse import open_source
from edgefl.sources.split import dirichlet_split
from edgefl.store.atomic import write_file
from edgefl.store.fleet import Fleet
from edgefl.strict_toml import write_toml

MODEL = "mnist-2nn"
STORAGE_KIB = {
    "x86-64-gateway": 4096,
    "rpi-5-8gb": 2800,
    "jetson-orin-nano": 2300,
    "rpi-4b-2gb": 1300,
    "rpi-3b-plus": 1000,
    "rpi-zero-2w": 360,
}
"""What each profile may use for the demo's model, which takes 3,900 KiB at full width in float32, working copies included."""
ALPHA = 0.5
"""Of the Dirichlet split: each board sees mostly a few of the classes."""
LEAST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that the demo's processes need.

    Attributes:
        workspace: directory that holds all of it.
        fleet: the fleet.
        bundles: one per device.
        holdout: source that the server evaluates on.
    """

    workspace: Path
    fleet: Fleet
    bundles: tuple[Path, ...]
    holdout: str


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sources(data: Path | None) -> tuple[str, str]:
    """Training and hold-out source: a directory with MNIST's four files, or scikit-learn's digits."""
    if data is None:
        return "digits:?split=train", "digits:?split=test"
    path = data.resolve()
    return f"idx:{path}?split=train", f"idx:{path}?split=test"


def set_stage(workspace: Path, *, devices: int, data: Path | None, seed: int) -> Stage:
    """Make the fleet, its profiles, one bundle and one data shard per device.

    Raises:
        InputError: fewer devices than profiles.
        DataError: the data is missing or damaged.
    """
    if devices < len(STORAGE_KIB):
        raise InputError(
            "too few devices for the demo", expected=f"at least {len(STORAGE_KIB)}, one of each profile", found=str(devices)
        )
    train, holdout = sources(data)
    examples = open_source(train).load()
    shards = dirichlet_split(examples.y, devices, alpha=ALPHA, seed=seed, minimum=LEAST_EXAMPLES)
    fleet = create_fleet(workspace / "fleet", name="demo", host="127.0.0.1", port=free_port())
    _write_profiles(fleet)
    bundles = []
    for number, rows in enumerate(shards):
        profile = tuple(STORAGE_KIB)[number % len(STORAGE_KIB)]
        shard = workspace / f"shard-{number + 1:02}.npz"
        np.savez(shard, x=examples.x[rows], y=examples.y[rows])
        made = provision(fleet, [_device_id(profile, number + 1)], profile, workspace / "devices", data=f"npz:{shard}")
        bundles += [bundle.bundle for bundle in made]
    return Stage(workspace, fleet, tuple(bundles), holdout)


def _device_id(profile: str, number: int) -> str:
    """Short enough for a terminal's table."""
    return f"{profile.removeprefix('rpi-').removeprefix('x86-64-').removesuffix('-orin-nano')}-{number:02}"


def _write_profiles(fleet: Fleet) -> None:
    known = fleet.profiles()
    for name, kib in STORAGE_KIB.items():
        profile: Profile = msgspec.structs.replace(known[name], storage_kib=kib, threads=1)
        text = write_toml(profile).splitlines(keepends=True)
        body = "".join(line for line in text if not line.startswith("name = "))
        write_file(fleet.path / "profiles" / f"{name}.toml", body.encode())
