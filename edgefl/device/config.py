"""What a board is told about itself: `device.toml`, one file of its bundle.

A bundle is a directory that `edgefl provision` writes and `install.sh` puts on the board: this file, the fleet's root
certificate and root metadata, and either the device's private key and certificate or a claim with which the board gets them. File
names in `device.toml` are relative to it, so that a bundle can be moved.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgefl.device.defer import Policy, parse_hours
from edgefl.errors import ConfigError, InputError
from edgefl.names import check_id
from edgefl.strict_toml import read_toml

FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
HoursText = Annotated[str, msgspec.Meta(pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?\Z")]
STATE_VARIABLE = "STATE_DIRECTORY"
"""Set by systemd for a unit with `StateDirectory=`."""


class DeviceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `device.toml`.

    Attributes:
        id: of the device; the same as in its certificate.
        profile: name of its profile, whose manifests it follows.
        engine: how it trains; `inference` if it only answers.
        threads: of the training process.
        memory_mb: MiB that the training process may use.
        storage_kib: KiB that one variant may have.
        host, port: of the broker.
        fleet: which fleet it belongs to, the SHA-256 of the fleet's first root metadata, 64 hexadecimal digits.
        data: where its examples come from; empty until somebody says it.
        state: directory for models, updates and residuals; systemd's `STATE_DIRECTORY` wins over it.
        ca, certificate, key: TLS files.
        root: the fleet's TUF root metadata, where trust in manifests begins.
        download_hours, install_hours: of the local day in which versions are fetched and installed, `22:00-06:00`; empty: always.
        battery_floor: percent below which a board that runs on its battery does neither; 0 for no floor.
        install_while_training: whether a version may be installed in the middle of a round.
        install_patience_hours: how long a round in progress holds an installation up at most.
    """

    id: str
    profile: str
    engine: Literal["portable", "ort-training", "inference"]
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)]
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)]
    storage_kib: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    data: Annotated[str, msgspec.Meta(max_length=500)] = ""
    state: FileName = "state"
    ca: FileName = "ca.crt"
    certificate: FileName = "device.crt"
    key: FileName = "device.key"
    root: FileName = "root.json"
    download_hours: HoursText = ""
    install_hours: HoursText = ""
    battery_floor: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    install_while_training: bool = False
    install_patience_hours: Annotated[float, msgspec.Meta(ge=0.0, le=720.0)] = 6.0

    @property
    def policy(self) -> Policy:
        """When versions may be fetched and installed."""
        return Policy(
            download=parse_hours(self.download_hours),
            install=parse_hours(self.install_hours),
            battery=self.battery_floor,
            while_training=self.install_while_training,
            patience=self.install_patience_hours * 3600.0,
        )

    @property
    def storage_bytes(self) -> int:
        """Bytes that one variant may have."""
        return self.storage_kib * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """A device's configuration and the directory that its file names are relative to."""

    directory: Path
    config: DeviceConfig

    @property
    def ca(self) -> Path:
        """Certificate of the fleet's root."""
        return self.directory / self.config.ca

    @property
    def pair(self) -> Path:
        """Key and certificate that the board connects with, in one file; see `edgefl.device.identity`."""
        return self.state / "device.pem"

    @property
    def own_certificate(self) -> Path:
        """The certificate that came with a ready bundle."""
        return self.directory / self.config.certificate

    @property
    def own_key(self) -> Path:
        """The private key that came with a ready bundle."""
        return self.directory / self.config.key

    @property
    def root(self) -> Path:
        """The fleet's root metadata as of its provisioning."""
        return self.directory / self.config.root

    @property
    def has_own_pair(self) -> bool:
        """Whether this is a ready bundle, not one that has to claim its certificate."""
        return os.access(self.own_key, os.R_OK) and os.access(self.own_certificate, os.R_OK)

    @property
    def certificate(self) -> Path:
        """The device's certificate, followed by the intermediate: the board's own, or else the bundle's."""
        return self.pair if os.access(self.pair, os.R_OK) else self.own_certificate

    @property
    def key(self) -> Path:
        """The device's private key, likewise."""
        return self.pair if os.access(self.pair, os.R_OK) else self.own_key

    @property
    def may_claim(self) -> bool:
        """Whether there is a `claim.toml`, with which the board can ask for a certificate."""
        return any(os.access(place / "claim.toml", os.R_OK) for place in (self.directory, self.state))

    @property
    def state(self) -> Path:
        """Where the device keeps what must survive a power cut."""
        given = os.environ.get(STATE_VARIABLE, "").partition(":")[0]
        return Path(given) if given else self.directory / self.config.state


def load_bundle(path: Path, *, data: str | None = None, unclaimed: bool = False) -> Bundle:
    """The bundle at a directory, or at the `device.toml` in it.

    Args:
        path: of either.
        data: replaces the source of examples that it names.
        unclaimed: whether it may hold neither a certificate nor a claim.

    Raises:
        ConfigError: a file of it is missing or unreadable, or `device.toml` is malformed.
    """
    file = path / "device.toml" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no device.toml at {path}", remedy="Give the bundle that `edgefl provision` wrote")
    config = read_toml(file, DeviceConfig, ConfigError)
    if data is not None:
        config = msgspec.structs.replace(config, data=data)
    try:
        check_id(config.id)
        check_id(config.profile, "profile name")
    except InputError as error:
        raise ConfigError(f"{file}: {error.problem}", expected=error.expected, remedy="Provision the device again") from None
    bundle = Bundle(file.parent, config)
    shared = (bundle.ca, bundle.root)
    for needed in shared if unclaimed or bundle.may_claim else (*shared, bundle.certificate, bundle.key):
        if not os.access(needed, os.R_OK):
            raise ConfigError(
                f"{needed} is missing or cannot be read",
                remedy="Copy the whole bundle, and run as the user it belongs to",
            )
    return bundle
