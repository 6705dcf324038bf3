"""Pushing a version: one variant per profile, each proved to fit its board, signed, and entered in the fleet's database.

The variants are made in `server.workshop`; here they become a version.

Rules:

* Files go to the blob store first, rows to the database last, in one transaction. A push that fails leaves no row, and blobs
  that the next garbage collection removes.
* The number of the version is taken inside that transaction, so two pushes at the same time get two numbers.
* Every manifest is decoded as a device would before it is recorded.
* Rows, the metadata that lists the manifests, and the release belong to one transaction: a version is there for devices or it is
  not.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefl.errors import DataError, FleetError, MessageError, ModelError, ProfileError
from edgefl.examples import Examples
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import layout_of, vector_of
from edgefl.export.weights import load_weights
from edgefl.identity.repository import with_targets
from edgefl.layout import Layout
from edgefl.names import check_id
from edgefl.profile import Profile
from edgefl.recipe import PLAIN, Recipe
from edgefl.server.explained import Explanation, explain
from edgefl.server.fitting import budget_of
from edgefl.server.keys import signers
from edgefl.server.pushed import PushedVariant
from edgefl.server.quantising import DROP
from edgefl.server.retraining import Retraining, check_apart
from edgefl.server.variants import store_parent
from edgefl.server.version_differences import version_differences
from edgefl.server.workshop import Made, Workshop
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents, put_documents
from edgefl.store.fleet import Fleet
from edgefl.store.garbage import keeping_new_blobs
from edgefl.store.registry import list_devices
from edgefl.store.releases import release
from edgefl.store.versions import listed_manifests
from edgefl.wire.messages import Difference, Health, Manifest, decode, encode
from edgefl.wire.sources import check_sources

MAX_BATCH = 65536
LENIENT = Health()
LIFETIME = 365 * 86400
"""Seconds after which a manifest is no longer valid, unless the request says otherwise."""


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What the operator asks for.

    Attributes:
        model: the model's name in the fleet, an id as in `edgefl.names`.
        source: built-in architecture or `package.module:factory`.
        weights: safetensors or checkpoint of the full model; None starts from the factory's own initial weights.
        batch: rows of a training step.
        seed: of the initial weights.
        holdout: examples to measure each variant's accuracy on; None leaves it out.
        calibrate: examples to calibrate int8 graphs with; None makes none.
        int8_drop: accuracy that an int8 graph may lose on the hold-out examples, in [0, 1].
        lifetime: seconds until the manifests expire.
        recipe: loss and optimiser.
        freeze, personal: patterns of the names of tensors that are not trained, and of those that stay on each device.
        hold: whether devices get the version by a rollout only, instead of all at once.
        health: when the version may stay on a device.
        sources: where else the files may be had, see `Manifest.sources`.
        keys: directories with release keys beside the fleet's own.
        retraining: on what structures that only just do not fit may be retrained; None retrains nothing.
        freezable: whether a small board's variant may keep first layers frozen, where that lets a more accurate one fit.
    """

    model: str
    source: str
    weights: Path | None = None
    batch: int = 32
    seed: int = 0
    holdout: Examples | None = None
    lifetime: int = LIFETIME
    recipe: Recipe = PLAIN
    freeze: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    hold: bool = False
    health: Health = LENIENT
    sources: tuple[str, ...] = ()
    keys: tuple[Path, ...] = ()
    calibrate: Examples | None = None
    int8_drop: float = DROP
    freezable: bool = False
    retraining: Retraining | None = None


def profiles_in_use(fleet: Fleet) -> tuple[Profile, ...]:
    """The profiles of the fleet's devices that are not revoked, by name.

    Raises:
        FleetError: the fleet has no devices.
        ProfileError: a device's profile is unknown.
    """
    with closing(open_database(fleet.database)) as database:
        names = sorted({device.profile for device in list_devices(database) if device.revoked is None})
    if not names:
        raise FleetError("the fleet has no devices to push to", remedy="Provision some first: edgefl provision ID --profile NAME")
    known = fleet.profiles()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ProfileError(
            f"devices of the fleet have a profile that does not exist: {', '.join(unknown)}",
            remedy="Restore profiles/NAME.toml in the fleet directory",
        )
    return tuple(known[name] for name in names)


def push(
    fleet: Fleet,
    request: PushRequest,
    profiles: Sequence[Profile],
    *,
    now: float,
    on_progress: Callable[[str], None] = lambda _: None,
    on_planned: Callable[[Explanation], None] = lambda _: None,
) -> tuple[PushedVariant, ...]:
    """Make, prove, sign and record one version of a model.

    Args:
        fleet: where it goes.
        request: what to push.
        profiles: for which boards, each once; see `profiles_in_use`.
        now: seconds since 1970.
        on_progress: told what is being done, a line at a time.
        on_planned: told how each variant was chosen.

    Returns:
        One variant per profile, in the order of `profiles`.

    Raises:
        InputError: the model, its weights, the hold-out examples or a profile cannot be used; or it does not fit (`FitError`).
        EngineError: this machine cannot export for an engine.
        StoreError: the fleet directory cannot be written.
    """
    _check(request, profiles)
    on_progress(f"loading {request.source}")
    source = load_factory(request.source, request.recipe, request.freeze, request.personal)
    module = source.build(seed=request.seed)
    layout = layout_of(module)
    parent = load_weights(request.weights, layout) if request.weights else vector_of(module)
    blobs = BlobStore(fleet.blobs)
    workshop = Workshop(
        source,
        parent,
        blobs,
        batch=request.batch,
        holdout=request.holdout,
        calibrate=request.calibrate,
        drop=request.int8_drop,
        known=fleet.profiles().values(),
        on_progress=on_progress,
        freezable=request.freezable,
        retraining=request.retraining,
    )
    with keeping_new_blobs(blobs):
        made = [workshop.make(profile) for profile in profiles]
        on_progress("comparing with earlier versions")
        differences = version_differences(fleet.database, blobs, request.model, made)
        on_progress("signing")
        record = _Version(request, source, layout, store_parent(blobs, parent), int(now), differences)
        version = _record(fleet, record, made)
    for one in made:
        on_planned(_explained(one, workshop))
    return tuple(_outcome(request.model, version, one) for one in made)


def _check(request: PushRequest, profiles: Sequence[Profile]) -> None:
    """Refuse what can be refused before anything is exported."""
    check_id(request.model, "model name")
    if not 1 <= request.batch <= MAX_BATCH or request.lifetime < 1:
        raise ModelError(
            "impossible push", expected=f"batch 1 to {MAX_BATCH}, lifetime above 0", found=f"{request.batch}, {request.lifetime}"
        )
    if request.calibrate is not None and (request.holdout is None or not request.recipe.classifies):
        raise DataError(
            "an int8 graph cannot be judged",
            expected="hold-out examples, and a loss whose answers are right or wrong",
            found="no hold-out" if request.holdout is None else request.recipe.loss,
            remedy="Give --holdout, or leave --calibrate out",
        )
    check_apart(request.retraining, request.holdout)
    check_sources(request.sources)
    names = [profile.name for profile in profiles]
    if not names or len(set(names)) < len(names):
        raise ProfileError("impossible push", expected="one profile or more, each once", found=", ".join(names) or "none")
    for profile in profiles:
        if profile.engine == "none":
            raise ProfileError(
                f"profile {profile.name} cannot train",
                found=profile.reason,
                remedy="Give its devices another profile, or revoke them",
            )


@dataclass(frozen=True, slots=True)
class _Version:
    """What all variants of a version share; `weights` is the SHA-256 of the parent vector, `differences` are by profile."""

    request: PushRequest
    source: ModelSource
    layout: Layout
    weights: bytes
    created: int
    differences: Mapping[str, tuple[Difference, ...]]


def _record(fleet: Fleet, shared: _Version, made: Iterable[Made]) -> int:
    """Insert all rows, list the manifests and release the version, in one transaction; the version's number."""
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


def _manifest(shared: _Version, one: Made, number: int, round_key: bytes) -> Manifest:
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


def _explained(one: Made, workshop: Workshop) -> Explanation:
    budget = budget_of(one.profile)
    return explain(one.profile.name, one.engine, budget, one.planned, workshop.measured(one.engine), workshop.basis, one.refused)


def _outcome(model: str, version: int, one: Made) -> PushedVariant:
    c, p = one.candidate, one.profile
    return PushedVariant(
        model=model,
        version=version,
        profile=p.name,
        engine=one.engine,
        variant=c.name,
        width=c.width,
        precision=c.precision.value,
        parameters=c.layout.size,
        bytes=one.file_bytes,
        footprint=c.footprint,
        budget=p.storage_bytes,
        accuracy=one.accuracy,
        peak_bytes=one.fit.peak_bytes,
        memory_mb=p.memory_mb,
        step_ms=one.fit.step_ms,
        board_step_ms=one.fit.step_ms * p.slowdown or None,
        int8_bytes=one.int8.length if one.int8 else None,
        int8_accuracy=one.int8.accuracy if one.int8 else None,
        int8_speedup=one.int8.speedup if one.int8 else None,
        predicted=c.accuracy,
        reason=one.planned.reason,
    )
