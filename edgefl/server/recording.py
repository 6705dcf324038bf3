"""A new version enters the fleet's books.

Rules:

* Rows, the metadata that lists the manifests, and the release belong to one transaction: a version is there for devices or it is
  not.
* The number of the version is taken inside that transaction, so two pushes at the same time get two numbers.
* Every manifest is decoded as a device would before it is recorded.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

import msgspec

from edgefl.errors import MessageError, ModelError
from edgefl.export.models import ModelSource
from edgefl.identity.repository import with_targets
from edgefl.layout import Layout
from edgefl.server.keys import signers
from edgefl.server.push_request import PushRequest
from edgefl.server.workshop import Made
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents, put_documents
from edgefl.store.fleet import Fleet
from edgefl.store.releases import release
from edgefl.store.versions import listed_manifests
from edgefl.wire.files import Difference
from edgefl.wire.messages import decode, encode
from edgefl.wire.releases import Manifest


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What all variants of a version share.

    Attributes:
        request: what was asked for.
        source: the model's factory.
        layout: of the parent vector.
        weights: SHA-256 of the parent vector.
        created: seconds since 1970.
        differences: shorter ways to the weights, by profile.
    """

    request: PushRequest
    source: ModelSource
    layout: Layout
    weights: bytes
    created: int
    differences: Mapping[str, tuple[Difference, ...]]


def record(fleet: Fleet, shared: NewVersion, made: Iterable[Made]) -> int:
    """Insert all rows, list the manifests and release the version, in one transaction; the version's number.

    Raises:
        FleetError: a key that must sign is not here.
        ModelError: a variant cannot be described in one message.
        StoreError: the database cannot be written; nothing has changed.
    """
    request, layout = shared.request, msgspec.msgpack.encode(shared.layout)
    with closing(open_database(fleet.database)) as database, transaction(database):
        known = documents(database)
        online = signers(fleet, known, "online")[0]
        release_keys = signers(fleet, known, "release", request.keys)
        (last,) = database.execute("SELECT MAX(version) FROM versions WHERE model=?", (request.model,)).fetchone()
        number = int(last or 0) + 1
        row = (request.model, number, shared.created, layout, shared.weights)
        database.execute("INSERT INTO versions (model, version, created, layout, weights) VALUES (?, ?, ?, ?, ?)", row)
        for one in made:
            _insert(database, one, number, _encoded(_manifest(shared, one, number, online.public_key)), request.model)
        put_documents(database, with_targets(known, listed_manifests(database), release_keys, online, shared.created))
        if not request.hold:
            release(database, request.model, number, shared.created)
    return number


def _manifest(shared: NewVersion, one: Made, number: int, round_key: bytes) -> Manifest:
    return Manifest(
        model=shared.request.model,
        version=number,
        profile=one.profile.name,
        variant=one.candidate.name,
        engine=one.engine,
        layout=one.candidate.layout,
        input_shape=shared.source.input_shape,
        classes=shared.source.classes,
        batch=shared.request.batch,
        files=one.files,
        round_key=round_key,
        created=shared.created,
        expires=shared.created + shared.request.lifetime,
        recipe=shared.request.recipe,
        health=shared.request.health,
        differences=shared.differences[one.profile.name],
        sources=shared.request.sources,
        fit=one.fit,
    )


def _encoded(manifest: Manifest) -> bytes:
    """The manifest as it is announced, which a device can decode."""
    try:
        encoded = encode(manifest)
        decode(encoded, Manifest)
    except MessageError as error:
        raise ModelError(
            f"variant {manifest.variant} cannot be described in one message: {error.problem}",
            expected=error.expected,
            found=error.found,
            remedy="Use a model with fewer tensors or parameters",
        ) from error
    return encoded


def _insert(database: sqlite3.Connection, one: Made, number: int, encoded: bytes, model: str) -> None:
    c, p = one.candidate, one.profile
    sizes = (c.layout.size, one.file_bytes, p.storage_bytes)
    database.execute(
        """INSERT INTO variants (model, version, profile, variant, precision, parameters, bytes, budget, accuracy, manifest, axes)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (model, number, p.name, c.name, c.precision.value, *sizes, one.accuracy, encoded, one.cut.axes),
    )
