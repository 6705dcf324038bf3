"""What the doctor measures on a board, for `edgefl.device.doctor` to judge.

Model: each function looks at one thing and hands values to its judge; `examine` calls them all, and asks the board itself
(`edgefl.device.vitals`). Stored variants run in a process of their own, as in training, so that one which crashes or eats the
memory is a finding and not the end.

Rules: looking changes nothing: no directory is made, no message published, and the broker sees a TLS handshake and no CONNECT,
because a second client of the same id would throw the running agent out. What cannot be found out is no fault.
"""

import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgefl.codec.weights import decode_weights
from edgefl.device import doctor, vitals
from edgefl.device.config import Bundle, load_bundle
from edgefl.device.diagnosis import Check, Diagnosis, Measured, is_able
from edgefl.device.doctor import MIB
from edgefl.device.hands import RESERVE
from edgefl.device.job import graphs_of
from edgefl.device.timekeeping import FILE, certain
from edgefl.device.trust import kept_manifest
from edgefl.engine.contract import VariantFiles
from edgefl.engine.inference import ROWS
from edgefl.engine.probe import probe
from edgefl.engine.runtime import available_engines
from edgefl.errors import ConfigError, EdgeflError, LinkError, PeerError
from edgefl.examples import Examples
from edgefl.identity.validity import ends_of, validity_of
from edgefl.link.address import BrokerAddress, Trouble, explain, tls_context
from edgefl.profile import shipped_profiles, trains
from edgefl.sources.parse import open_source
from edgefl.store.blobs import BlobStore
from edgefl.store.clock import SteadyWall, synchronised
from edgefl.store.model_state import ModelState
from edgefl.wire.releases import Manifest

PATIENCE = 5.0
"""Seconds for the broker's answer."""
JUDGING = 1.0
"""Seconds that a broker has to refuse our certificate: in TLS 1.3 it judges it after our side of the handshake is done."""
RATE = 1e-4
"""Learning rate of the steps that are timed: small, because their outcome does not matter."""


def examine(path: Path, *, data: str | None = None) -> Diagnosis:
    """Look at everything that taking part needs.

    Args:
        path: of the bundle.
        data: source of examples, instead of what `device.toml` says.
    """
    try:
        bundle = load_bundle(path, data=data)
        if not os.access(bundle.certificate, os.R_OK):
            raise ConfigError("this board has not claimed its certificate", remedy="Run `edgefl device claim` or the agent")
        validity = validity_of(bundle.certificate.read_bytes())
        authority = min(*ends_of(bundle.ca.read_bytes()), *ends_of(bundle.certificate.read_bytes())[1:])
    except ConfigError as error:
        found = Check(name="bundle", state="failed", text=f"{said(error)}.", remedy=error.remedy)
        return Diagnosis(device="", profile="", able=False, versions=vitals.versions(), models=(), checks=(found,))
    config, now = bundle.config, time.time()
    examples, data_check = examine_data(config.data, needed=trains(config.engine))
    known = shipped_profiles().get(config.profile)
    checks = [
        doctor.judge_architecture(known.architecture if known else "", platform.machine()),
        doctor.judge_engine(config.engine, config.profile, vitals.runtime(), available_engines(), vitals.load_trouble()),
        examine_clock(bundle, now),
        doctor.judge_service(vitals.service()),
        doctor.judge_certificate(now, validity.begins, validity.ends, validity.name, config.id),
        doctor.judge_authority(now, authority),
        examine_storage(bundle),
        doctor.judge_temperature(vitals.temperature(), vitals.throttled()),
        data_check,
        examine_broker(bundle),
    ]
    models = []
    for measured, check in examine_models(bundle, examples):
        models += [measured] if measured else []
        checks.append(check)
    return Diagnosis(
        device=config.id,
        profile=config.profile,
        able=is_able(checks),
        versions=vitals.versions(),
        models=tuple(models),
        checks=tuple(checks),
        trains=trains(config.engine),
    )


def examine_clock(bundle: Bundle, now: float) -> Check:
    """The system's clock, and what the agent remembers of the time."""
    wall = SteadyWall(bundle.state / FILE, lowest=certain(bundle), system=lambda: now)
    return doctor.judge_clock(now, now + wall.behind, wall.now, synchronised())


def examine_storage(bundle: Bundle) -> Check:
    """The state directory, or the place where it will be made."""
    place = bundle.state.absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return doctor.judge_storage(free, bundle.config.storage_bytes, RESERVE, writable=writable, place=str(place))


def examine_data(source: str, *, needed: bool = True) -> tuple[Examples | None, Check]:
    """The examples, if they can be read; they are `needed` for training."""
    try:
        examples = open_source(source).load() if source else None
    except EdgeflError as error:
        return None, doctor.judge_data(source, 0, said(error), error.remedy, needed=needed)
    return examples, doctor.judge_data(source, len(examples) if examples else 0, "", "", needed=needed)


def examine_broker(bundle: Bundle) -> Check:
    """A TLS handshake with the device's certificate, as its agent makes it."""
    config = bundle.config
    address = BrokerAddress(config.host, config.port, bundle.ca, bundle.certificate, bundle.key)
    trouble = handshake(address)
    return doctor.judge_broker(str(address), trouble.reason if trouble else "", trouble.remedy if trouble else "")


def handshake(address: BrokerAddress) -> Trouble | None:
    """Why the broker does not take us; None if it does."""
    try:
        context = tls_context(address)
        raw = socket.create_connection((address.host, address.port), timeout=PATIENCE)
        with raw, context.wrap_socket(raw, server_hostname=address.host) as secured:
            secured.settimeout(JUDGING)
            try:
                ended = not secured.recv(1)
            except TimeoutError:
                return None  # it waits for our CONNECT
            return explain(ConnectionResetError()) if ended else None
    except LinkError as error:
        return Trouble(said(error), error.remedy)
    except (OSError, ValueError) as error:
        return explain(error)


def examine_models(bundle: Bundle, examples: Examples | None) -> Iterator[tuple[Measured | None, Check]]:
    """Each stored variant, run with the device's own examples where these fit."""
    root = bundle.state / "models"
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        name = f"model {folder.name}"
        try:
            signed = ModelState(folder).current()
            if signed is not None:
                manifest = kept_manifest(signed, folder.name, bundle.config)
                measured = measure(bundle, manifest, examples)
                yield measured, doctor.judge_model(measured, bundle.config.memory_mb)
        except PeerError as error:
            text = f"What is stored is not believed: {said(error)}."
            yield None, Check(name=name, state="warning", text=text, remedy="The agent fetches the model again by itself")
        except (EdgeflError, OSError) as error:
            remedy = error.remedy if isinstance(error, EdgeflError) else "Check the disk"
            yield None, Check(name=name, state="failed", text=f"{said(error)}.", remedy=remedy)
        for failure in ModelState(folder).failed():
            text = f"Version {failure.version} has failed on this device: {failure.code}."
            yield None, Check(name=name, state="warning", text=text, remedy="Push a corrected version, or roll it out again")


def measure(bundle: Bundle, manifest: Manifest, examples: Examples | None) -> Measured:
    """Run a stored variant in a child.

    Raises:
        EdgeflError: a file is missing or damaged, the data does not fit the model, or the variant does not run.
    """
    blobs = BlobStore(bundle.state / "blobs")
    weights = decode_weights(blobs.get(manifest.file("weights").sha256), manifest.layout)
    shape, classes, loss = manifest.input_shape, manifest.classes, manifest.recipe.loss
    rows = manifest.batch if manifest.trains else max(manifest.batch, ROWS)
    if not examples:
        y = np.zeros((rows, classes), np.float32) if loss == "mse" else np.zeros(rows, np.int64)
        examples = Examples(np.random.default_rng(0).standard_normal((rows, *shape)).astype(np.float32), y)
    trial = examples.take(np.arange(rows) % len(examples)).shaped(shape, classes, loss)
    paths = {role: Path(path) for role, path in graphs_of(manifest.files, lambda sha256: str(blobs.path(sha256))).items()}
    files = VariantFiles(manifest.engine, manifest.layout, shape, classes, manifest.batch, paths, manifest.recipe)
    answer = probe(files, weights, [trial], RATE, threads=bundle.config.threads)
    return Measured(
        model=manifest.model,
        version=manifest.version,
        variant=manifest.variant,
        engine=manifest.engine,
        step_ms=round(1000.0 * answer.step_seconds, 3),
        peak_rss_mb=round(answer.peak_rss / MIB, 1),
        slowdown=float(f"{1000.0 * answer.step_seconds / manifest.fit.step_ms:.3g}") if manifest.fit.step_ms else 0.0,
    )


def said(error: Exception) -> str:
    """An error as a part of a sentence: what is wrong, expected and found; its remedy is said elsewhere."""
    if not isinstance(error, EdgeflError):
        return str(error)
    text = error.problem + (f": expected {error.expected}" if error.expected else "")
    return text + (f"{',' if error.expected else ':'} found {error.found}" if error.found else "")
