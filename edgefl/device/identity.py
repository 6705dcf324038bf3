"""The board's own key and certificate: where they lie, how they are replaced, and what a claim leaves behind.

    STATE/device.pem           private key, certificate, intermediate: one file, so that the pair changes in one rename
    STATE/device.previous.pem  the pair before it, until the new one has connected
    STATE/draft-NAME.pem       a key and its signing request, made and not yet answered
    STATE/claimed              hashes of the claims that were used up
    claim.toml                 an open claim, in STATE or in the bundle

Model: a ready bundle's pair is taken over into `device.pem` at the start, and so is that of a newer bundle for the same board;
from then on `device.pem` is what connects. A claim is open while a `claim.toml` holds a token that is not in `claimed`.

Rules: a key never leaves the board and is never readable by others. A draft is on disk before it is sent, and stays until its
answer is on disk: after a power cut the same request is sent again, and the server gives the same certificate again.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from edgefl.device.config import Bundle
from edgefl.errors import ConfigError, MessageError
from edgefl.identity.requests import make_request
from edgefl.identity.validity import Validity, validity_of
from edgefl.store.atomic import read_file, replace, store_error, write_file
from edgefl.strict_toml import read_toml
from edgefl.wire.enrolment import MAX_CSR
from edgefl.wire.messages import decode, encode

CLAIM_FILE = "claim.toml"
USED = "claimed"
PREVIOUS = "device.previous.pem"


class ClaimFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `claim.toml`.

    Attributes:
        token: the one-time secret, at least 128 random bits, in base64url.
        host, port: of the claim broker.
        expires: seconds since 1970; the server decides, this is for people.
    """

    token: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{22,64}\Z")]
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    expires: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]

    @property
    def mark(self) -> str:
        """What stands for the token once it must not be kept."""
        return hashlib.sha256(self.token.encode()).hexdigest()


class Draft(msgspec.Struct, frozen=True, array_like=True):
    """A private key (PEM) and the signing request for it (DER)."""

    key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=4096)]
    csr: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CSR)]


def open_claim(bundle: Bundle) -> ClaimFile | None:
    """The claim that this board has still to make; None if there is none.

    Raises:
        ConfigError: a `claim.toml` is malformed.
    """
    used = _used(bundle)
    for path in _claim_files(bundle):
        claim = read_toml(path, ClaimFile, ConfigError)
        if claim.mark not in used:
            return claim
    return None


def close_claim(bundle: Bundle, claim: ClaimFile) -> None:
    """Note that a claim is used up, and delete its token wherever that is permitted.

    Raises:
        StoreError: the note cannot be written.
    """
    lines = [*sorted(_used(bundle)), claim.mark]
    write_file(bundle.state / USED, "".join(f"{line}\n" for line in lines).encode(), 0o600)
    forget_tokens(bundle)
    with suppress(OSError):
        _draft_path(bundle, claim.mark[:16]).unlink()


def forget_tokens(bundle: Bundle) -> None:
    """Delete the claims, all of which are used up, wherever that is permitted."""
    for path in _claim_files(bundle):
        with suppress(OSError):  # a bundle may be read-only; the note is enough
            path.unlink()


def draft(bundle: Bundle, name: str) -> Draft:
    """The key and request of this name: those that were made before, or fresh ones, which are on disk then.

    Raises:
        StoreError: they cannot be written.
    """
    path = _draft_path(bundle, name)
    try:
        return decode(path.read_bytes(), Draft)
    except (OSError, MessageError):
        made = Draft(*make_request(bundle.config.id))
        write_file(path, encode(made), 0o600)
        return made


def has_draft(bundle: Bundle, name: str) -> bool:
    """Whether a request of this name was made and not yet answered."""
    return _draft_path(bundle, name).is_file()


def drop_draft(bundle: Bundle, name: str) -> None:
    """Forget it. Raises StoreError."""
    path = _draft_path(bundle, name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise store_error("delete", path, error) from error


def install_pair(bundle: Bundle, key: bytes, chain: bytes) -> None:
    """Make these what the board connects with, in one rename. Raises StoreError; then the old ones stay."""
    write_file(bundle.pair, key + chain, 0o600)


def keep_previous(bundle: Bundle) -> None:
    """Keep a copy of the pair, to be able to go back. Raises StoreError."""
    write_file(bundle.state / PREVIOUS, read_file(bundle.pair), 0o600)


def drop_previous(bundle: Bundle) -> bool:
    """Forget the copy; whether there was one."""
    try:
        (bundle.state / PREVIOUS).unlink()
    except OSError:
        return False
    return True


def go_back(bundle: Bundle) -> None:
    """Connect with the pair before this one again. Raises StoreError."""
    replace(bundle.state / PREVIOUS, bundle.pair)


def has_previous(bundle: Bundle) -> bool:
    """Whether the present pair has not yet connected."""
    return (bundle.state / PREVIOUS).is_file()


def pair_validity(bundle: Bundle) -> Validity | None:
    """What the certificate in `device.pem` says of itself; None without a usable one."""
    return _validity(bundle.pair)


def take_over(bundle: Bundle) -> None:
    """Make the bundle's own pair the board's, if it has one that is newer.

    Raises:
        StoreError: it cannot be written.
    """
    if not bundle.has_own_pair:
        return
    own, held = _validity(bundle.own_certificate), pair_validity(bundle)
    if own is not None and (held is None or own.begins > held.begins):
        install_pair(bundle, read_file(bundle.own_key), read_file(bundle.own_certificate))


def _validity(path: Path) -> Validity | None:
    try:
        return validity_of(path.read_bytes())
    except (OSError, ConfigError):
        return None


def _claim_files(bundle: Bundle) -> list[Path]:
    places = (bundle.state / CLAIM_FILE, bundle.directory / CLAIM_FILE)
    return [path for path in places if os.access(path, os.R_OK)]


def _draft_path(bundle: Bundle, name: str) -> Path:
    return bundle.state / f"draft-{name}.pem"


def _used(bundle: Bundle) -> set[str]:
    try:
        return set((bundle.state / USED).read_text().split())
    except (OSError, UnicodeDecodeError):
        return set()
