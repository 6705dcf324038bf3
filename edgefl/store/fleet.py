"""The fleet directory: everything that a fleet is, in one place that can be backed up, moved and read.

    fleet.toml      name, and where devices reach the broker
    ca/             root.crt, intermediate.crt, intermediate.key; root.key, which belongs offline (`edgefl init --root`)
    keys/           broker.pem and server.pem (key, certificate, intermediate: a pair in one file, see `server.pairs`);
                    online*.key, release*.key and metadata-root*.key (Ed25519, see `server.keys`), of which metadata-root*.key
                    belongs offline
    broker/         the broker's generated configuration, who is revoked, and what the broker keeps
    profiles/       the fleet's own device profiles
    blobs/          graphs and weights, by content
    fleet.sqlite    registry, rounds, updates
    serve.lock      held by the running server

Rules: the directory appears complete or not at all; it is readable by its owner only; private keys have mode 0600.
"""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from edgefl.errors import FleetError, InputError
from edgefl.names import check_id
from edgefl.profile import Profile, read_directory, shipped_profiles
from edgefl.store.atomic import store_error, sync_directory, write_file
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import put_documents
from edgefl.strict_toml import read_toml, write_toml

DIRECTORIES = ("ca", "keys", "broker", "profiles", "blobs")
REQUIRED = (
    "fleet.toml",
    "fleet.sqlite",
    "ca/root.crt",
    "ca/intermediate.crt",
    "ca/intermediate.key",
    "broker",
    "blobs",
)
PAIRS = ("broker", "server")
"""Who has a key and certificate of the fleet's own; a fleet of an older edgefl has them in two files, `.key` and `.crt`."""
DEFAULT_PORT = 8883
DEFAULT_CLAIM_PORT = 8884


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `fleet.toml` says.

    Attributes:
        name: of the fleet; stands in every certificate.
        host: name or address under which devices reach the broker.
        port: of the broker.
        claim_port: where boards without a certificate claim one; the next higher port is the server's at the same broker.
        device_days: life of a certificate that a board has asked for; it asks for the next one after 60 % of it.
    """

    name: str
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:-]+\Z")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = DEFAULT_PORT
    claim_port: Annotated[int, msgspec.Meta(ge=1, le=65534)] = DEFAULT_CLAIM_PORT
    device_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90

    @property
    def claim_server_port(self) -> int:
        """Where the server listens to claims; boards cannot connect here."""
        return self.claim_port + 1


@dataclass(frozen=True, slots=True)
class Fleet:
    """An existing, complete fleet directory."""

    path: Path
    settings: FleetSettings

    @property
    def database(self) -> Path:
        """For `edgefl.store.database.open_database`."""
        return self.path / "fleet.sqlite"

    @property
    def blobs(self) -> Path:
        """For `edgefl.store.blobs.BlobStore`."""
        return self.path / "blobs"

    @property
    def broker(self) -> Path:
        """What the broker generates and keeps."""
        return self.path / "broker"

    @property
    def root_certificate(self) -> Path:
        """What everybody in the fleet trusts."""
        return self.path / "ca" / "root.crt"

    @property
    def intermediate_certificate(self) -> Path:
        """The signing authority's certificate."""
        return self.path / "ca" / "intermediate.crt"

    @property
    def intermediate_key(self) -> Path:
        """The signing authority's private key."""
        return self.path / "ca" / "intermediate.key"

    @property
    def broker_certificate(self) -> Path:
        """The file with the broker's certificate, followed by the intermediate."""
        return self._pair("broker", ".crt")

    @property
    def broker_key(self) -> Path:
        """The file with the broker's private key; usually the same."""
        return self._pair("broker", ".key")

    @property
    def server_certificate(self) -> Path:
        """The file with the certificate with which the server connects to the broker, followed by the intermediate."""
        return self._pair("server", ".crt")

    @property
    def server_key(self) -> Path:
        """The file with its private key; usually the same."""
        return self._pair("server", ".key")

    @property
    def keys(self) -> Path:
        """Where the signing keys are."""
        return self.path / "keys"

    def pair(self, owner: str) -> Path:
        """The one file with the key and certificate of `broker` or `server`."""
        return self.keys / f"{owner}.pem"

    def _pair(self, owner: str, suffix: str) -> Path:
        """One file for both, or, in a fleet of an older edgefl, one for each."""
        return self.pair(owner) if self.pair(owner).exists() else self.keys / f"{owner}{suffix}"

    def profiles(self) -> dict[str, Profile]:
        """Shipped profiles and the fleet's own, which win. Raises ProfileError when one is malformed."""
        return {**shipped_profiles(), **read_directory(self.path / "profiles")}

    @classmethod
    def open(cls, path: Path) -> "Fleet":
        """An existing fleet directory.

        Raises:
            FleetError: it is missing, incomplete, or `fleet.toml` is malformed.
        """
        if not path.is_dir():
            raise FleetError(
                f"there is no fleet directory {path}",
                remedy=f"Create one with `edgefl init {path}`, or give --fleet or EDGEFL_FLEET",
            )
        missing = _missing(path)
        if missing:
            raise FleetError(
                f"{path} is not a complete fleet directory",
                expected=", ".join(REQUIRED[:3]) + " and others",
                found=f"no {', '.join(missing)}",
                remedy="Restore what is missing from a backup, or create a new fleet elsewhere with `edgefl init`",
            )
        settings = read_toml(path / "fleet.toml", FleetSettings, FleetError)
        check_id(settings.name, "fleet name")
        return cls(path, settings)

    @classmethod
    def create(
        cls, path: Path, settings: FleetSettings, files: Mapping[str, bytes], metadata: Mapping[str, bytes] | None = None
    ) -> "Fleet":
        """A new fleet directory with these certificates and keys, by their name below it, and this TUF metadata in its database.

        Raises:
            FleetError: the path is in use, or a required file was not given.
            StoreError: it cannot be written; nothing is left behind.
        """
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise FleetError(f"{path} is already in use", remedy="Choose a new path; `edgefl init` never overwrites a fleet")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        except OSError as error:
            raise store_error("create", path, error) from error
        try:
            _fill(staging, settings, files, metadata or {})
            staging.replace(path)
            sync_directory(path.parent)
        except OSError as error:
            raise store_error("create", path, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls.open(path)


def check_settings(name: str, host: str, port: int, claim_port: int) -> FleetSettings:
    """The settings of a new fleet.

    Raises:
        InputError: a name, host or port that cannot be used.
    """
    check_id(name, "fleet name")
    try:
        return msgspec.convert({"name": name, "host": host, "port": port, "claim_port": claim_port}, FleetSettings)
    except msgspec.ValidationError as error:
        raise InputError("a fleet cannot have this address", expected=str(error), found=f"{host}:{port}, {claim_port}") from None


def _missing(path: Path) -> list[str]:
    """What a directory lacks to be a fleet's."""
    pairs = [f"keys/{owner}.pem" for owner in PAIRS if not (path / "keys" / f"{owner}.crt").exists()]
    return [name for name in (*REQUIRED, *pairs) if not (path / name).exists()]


def _fill(staging: Path, settings: FleetSettings, files: Mapping[str, bytes], metadata: Mapping[str, bytes]) -> None:
    """Write everything into an empty directory of mode 0700."""
    for name in DIRECTORIES:
        (staging / name).mkdir()
    for name, data in files.items():
        write_file(staging / name, data, 0o600 if name.endswith((".key", ".pem")) else 0o644)
    comments = {
        "name": "Stands in every certificate; do not change it.",
        "host": "Where devices reach the broker. After a change: `edgefl certificates renew broker`, which names it.",
        "claim_port": "Where boards claim certificates while `edgefl broker --claims` runs; the next port is the server's.",
        "device_days": "How long a certificate that a board has asked for is valid; it is renewed after 60 % of that.",
    }
    write_file(staging / "fleet.toml", write_toml(settings, comments).encode())
    with closing(open_database(staging / "fleet.sqlite")) as database, transaction(database):
        put_documents(database, metadata)
    (staging / "fleet.sqlite").chmod(0o600)
    missing = _missing(staging)
    if missing:
        raise FleetError("a fleet cannot be created without all its keys", found=f"no {', '.join(missing)}")
