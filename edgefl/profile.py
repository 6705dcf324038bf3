"""Device profiles: what a class of boards can hold, compute and receive.

A profile is a small TOML file; its name is the file's name. Shipped profiles lie in `firmware_profiles/`, a fleet adds its own
in `FLEET/profiles/`, which win over shipped ones of the same name. Every figure has a source, because a wrong figure shows
only when a board in the field runs out of memory.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgefl.errors import InputError, ProfileError
from edgefl.names import check_id
from edgefl.strict_toml import read_toml

Architecture = Literal["aarch64", "armv6l", "armv7l", "x86_64"]
Engine = Literal["portable", "ort-training", "inference", "none"]
NATIVE: Engine = "ort-training"
PORTABLE: Engine = "portable"
"""The engine that every board has, and to which a push falls back where the profile's own cannot train a model."""
INFERENCE: Engine = "inference"
"""The engine of boards that only answer: their variants have forward graphs and take part in no round (ADR 0026)."""
ENGINES = (PORTABLE, NATIVE, INFERENCE)
"""Those that run models."""
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
Megabytes = Annotated[int, msgspec.Meta(ge=16, le=1 << 20)]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a class of boards can do.

    Attributes:
        name: the file's name without `.toml`.
        title: the board, for people.
        soc: system on a chip and CPU cores.
        architecture: as `uname -m` says on the supported operating system.
        cores: CPU cores.
        ram_mb: MiB of RAM.
        storage_kib: KiB that all files of one variant may have together; a policy, not the size of the card.
        memory_mb: MiB that the training process may use; on a board that does not train, the process that tries versions.
        threads: of that process.
        link_kbps: kbit/s that a board in the field can count on, for estimates.
        engine: how the board trains; `inference` when it only answers, `none` when it can run nothing, with the `reason`.
        sources: where the figures come from.
        step_ms: milliseconds that one training step may take on the board; 0 sets no limit.
        slowdown: how many times longer a training step takes on the board than on the machine that pushes, as measured on both; 0
            if nobody has measured it. A line of `sources` that has this word says how.
    """

    name: str
    title: Line
    soc: Line
    architecture: Architecture
    cores: Annotated[int, msgspec.Meta(ge=1, le=256)]
    ram_mb: Megabytes
    storage_kib: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    memory_mb: Megabytes
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)]
    link_kbps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    engine: Engine
    sources: Annotated[tuple[Line, ...], msgspec.Meta(min_length=1, max_length=20)]
    reason: Annotated[str, msgspec.Meta(max_length=300)] = ""
    step_ms: Annotated[float, msgspec.Meta(ge=0.0, le=86_400_000.0)] = 0.0
    slowdown: Annotated[float, msgspec.Meta(ge=0.0, le=10_000.0)] = 0.0

    @property
    def storage_bytes(self) -> int:
        """Bytes that all files of one variant may have together."""
        return self.storage_kib * 1024

    @property
    def trains(self) -> bool:
        """Whether boards of this profile take part in rounds."""
        return trains(self.engine)


def trains(engine: str) -> bool:
    """Whether an engine of this name trains what it runs."""
    return engine in (PORTABLE, NATIVE)


def load_profile(path: Path) -> Profile:
    """The profile in a TOML file.

    Raises:
        ProfileError: the file is missing or malformed, or its figures contradict each other.
    """
    try:
        check_id(path.stem, "profile name")
    except InputError as error:
        raise ProfileError(
            f"{path} has a name that no profile may have",
            expected=error.expected,
            found=repr(path.stem),
            remedy="Rename the file",
        ) from None
    profile = read_toml(path, Profile, ProfileError, {"name": path.stem})
    _cross_check(profile, path)
    return profile


def _cross_check(profile: Profile, path: Path) -> None:
    """Refuse figures that cannot be true together."""
    native = profile.engine != "ort-training" or profile.architecture == "x86_64"
    explained = (profile.engine == "none") == bool(profile.reason)
    runnable = profile.engine == "none" or profile.architecture in ("aarch64", "x86_64")
    rules = (
        ("threads", profile.threads <= profile.cores, f"at most cores ({profile.cores})", str(profile.threads)),
        ("memory_mb", profile.memory_mb < profile.ram_mb, f"less than ram_mb ({profile.ram_mb})", str(profile.memory_mb)),
        ("engine", native, "ort-training on x86_64 only (its wheels exist for nothing else)", profile.architecture),
        ("engine", runnable, "none on a 32-bit architecture (ONNX Runtime has no wheels for it)", profile.engine),
        (
            "reason",
            explained,
            "a reason if and only if engine is none",
            repr(profile.reason),
        ),
        (
            "storage_kib",
            profile.storage_kib <= profile.memory_mb * 1024,
            f"at most memory_mb ({profile.memory_mb} MiB), or no variant could be loaded",
            f"{profile.storage_kib} KiB",
        ),
        (
            "step_ms" if profile.step_ms else "slowdown",
            profile.trains or not (profile.step_ms or profile.slowdown),
            "none on a board that takes no training step",
            f"{profile.step_ms or profile.slowdown:g}",
        ),
        ("step_ms", profile.slowdown or not profile.step_ms, "slowdown beside it, without which it cannot be judged", "none"),
        (
            "slowdown",
            not profile.slowdown or any("slowdown" in line for line in profile.sources),
            "a line of sources with the word slowdown that says how it was measured",
            f"{profile.slowdown:g} without one",
        ),
    )
    for key, holds, expected, found in rules:
        if not holds:
            raise ProfileError(f"{path} key {key!r} is impossible", expected=expected, found=found, remedy="Correct the file")


def shipped_directory() -> Path:
    """Where the shipped profiles are: inside an installed package, or at the top of a source checkout.

    Raises:
        ProfileError: in neither place.
    """
    package = Path(str(resources.files("edgefl")))
    for directory in (package / "firmware_profiles", package.parent / "firmware_profiles"):
        if directory.is_dir():
            return directory
    raise ProfileError("this installation of edgefl has no device profiles", remedy="Install edgefl again")


def read_directory(directory: Path) -> dict[str, Profile]:
    """All profiles of a directory, by name. A directory that does not exist holds none.

    Raises:
        ProfileError: one of them is malformed.
    """
    return {path.stem: load_profile(path) for path in sorted(directory.glob("*.toml"))}


def shipped_profiles() -> dict[str, Profile]:
    """The profiles that come with edgefl, by name."""
    return read_directory(shipped_directory())


def find_profile(name: str, profiles: dict[str, Profile]) -> Profile:
    """The profile of this name.

    Raises:
        ProfileError: there is none; the message lists what there is.
    """
    if name not in profiles:
        raise ProfileError(
            f"unknown profile {name!r}",
            expected=f"one of {', '.join(sorted(profiles))}",
            remedy="Choose one of these, or write your own into FLEET/profiles/NAME.toml",
        )
    return profiles[name]
