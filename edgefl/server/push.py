"""Pushing a version: one variant per profile, each proved to fit its board, signed, and entered in the fleet's database.

Model: a request is checked (`server.push_request`), its variants are made (`server.workshop`), and they become a version
(`server.recording`). A push may begin with what the fleet has learned: so the outcome of a training becomes a release, in a form
that each profile can hold, and reaches boards that take part in no round.

Rule: files go to the blob store first, rows to the database last, in one transaction. A push that fails leaves no row, and blobs
that the next garbage collection removes.
"""

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from edgefl.errors import FleetError, ModelError, ProfileError
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import layout_of, vector_of
from edgefl.export.weights import load_weights
from edgefl.layout import Float32, Layout
from edgefl.profile import Profile
from edgefl.server.explained import Explanation, explain
from edgefl.server.fitting import budget_of
from edgefl.server.push_request import PushRequest, check_request
from edgefl.server.pushed import PushedVariant
from edgefl.server.recording import NewVersion, record
from edgefl.server.variants import load_parent, store_parent
from edgefl.server.version_differences import version_differences
from edgefl.server.workshop import Made, Workshop
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.garbage import keeping_new_blobs
from edgefl.store.ledger import is_trained, last_closed, newest_weights
from edgefl.store.registry import list_devices
from edgefl.store.versions import released_version


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
    check_request(request, profiles)
    on_progress(f"loading {request.source}")
    source = load_factory(request.source, request.recipe, request.freeze, request.personal)
    module = source.build(seed=request.seed)
    layout = layout_of(module)
    blobs = BlobStore(fleet.blobs)
    if request.trained:
        parent = learned(fleet, request.model, layout, on_progress)
    else:
        parent = load_weights(request.weights, layout) if request.weights else vector_of(module)
    workshop = _workshop(fleet, request, source, parent, on_progress)
    with keeping_new_blobs(blobs):
        made = [workshop.make(profile) for profile in profiles]
        on_progress("comparing with earlier versions")
        differences = version_differences(fleet.database, blobs, request.model, made)
        on_progress("signing")
        new = NewVersion(request, source, layout, store_parent(blobs, parent), int(now), differences)
        number = record(fleet, new, made)
    for one in made:
        on_planned(_explained(one, workshop))
    return tuple(_outcome(request.model, number, one) for one in made)


def learned(fleet: Fleet, model: str, layout: Layout, say: Callable[[str], None] = lambda _: None) -> Float32:
    """The newest weights of a model's release, after the last round that has closed; float32, shape `(layout.size,)`.

    What has been pruned in rounds is zero in them and without a mark, as in a file (`edgefl.export.weights`).

    Raises:
        FleetError: no version of the model is released.
        ModelError: the release has other tensors.
        StoreError: the weights cannot be read.
    """
    with closing(open_database(fleet.database)) as database:
        version = released_version(database, model)
        (_, newest), number = newest_weights(database, version), last_closed(database, version)
        open_still = ", which is being trained; that ends as boards get this version" if is_trained(database, model) else ""
    say(f"beginning with the newest weights of {model}@{version.version}, round {number}{open_still}")
    shapes, known = ([(t.name, t.shape) for t in one.tensors] for one in (layout, version.layout))
    if shapes != known:
        raise ModelError(
            f"what the fleet has learned is of another model than the one that is pushed as {model!r}",
            expected=f"the tensors of {model}@{version.version}",
            found=f"{len(shapes)} tensors, {layout.size} parameters",
            remedy="Push the same model, or leave --trained out",
        )
    return load_parent(BlobStore(fleet.blobs), newest) + np.float32(0.0)


def _workshop(
    fleet: Fleet, request: PushRequest, source: ModelSource, parent: Float32, on_progress: Callable[[str], None]
) -> Workshop:
    """Where the variants of this push are made."""
    return Workshop(
        source,
        parent,
        BlobStore(fleet.blobs),
        batch=request.batch,
        holdout=request.holdout,
        calibrate=request.calibrate,
        drop=request.int8_drop,
        known=fleet.profiles().values(),
        on_progress=on_progress,
        freezable=request.freezable,
        retraining=request.retraining,
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
