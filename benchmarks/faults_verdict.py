"""What is true after all the dying: read from the fleet's database, the journals and the devices' directories.

* *lost*: an update that a device was told is stored, and the ledger does not hold it; or one that the ledger holds from before
  the last round that was closed, and no round has counted.
* *double*: an update that stands in the ledger twice; or a closed round whose weights are not those before it plus the mean of
  exactly its updates, each once.
* *without a model*: a device whose agent, started now, would find no version on disk that it believes and whose files are whole.
"""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults_roles import Folded, Journal, Settled, mean_of
from edgefl.device.config import load_bundle
from edgefl.device.held import HeldModel
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.model_state import ModelState

TOLERANCE = 1e-4


@dataclass(slots=True)
class Verdict:
    """Counts, and a sentence for each thing that is wrong."""

    settled: int = 0
    stored: int = 0
    rounds: int = 0
    lost: int = 0
    double: int = 0
    complaints: list[str] = field(default_factory=list)


def judge(database_path: Path, settled: Path, folded: Path, parents: tuple[Path, ...]) -> Verdict:
    """Compare the ledger with what devices and server have noted; parent vectors are looked for in these directories."""
    verdict = Verdict()
    with closing(open_database(database_path)) as database:
        _settlements(database, Journal(settled).read(Settled), verdict)
        _uncounted(database, verdict)
        _weights(database, Journal(folded).read(Folded), parents, verdict)
    return verdict


def holds_model(bundle_path: Path, model: str) -> bool:
    """Whether an agent that starts with this directory has a version, whole and believed."""
    bundle = load_bundle(bundle_path)
    held = HeldModel(model, bundle.config, ModelState(bundle.state / "models" / model), BlobStore(bundle.state / "blobs"))
    return held.session.active is not None


def gave_up(bundle_path: Path, model: str, version: int) -> bool:
    """Whether this device has given up a version as one that does not work here."""
    failed = ModelState(load_bundle(bundle_path).state / "models" / model).failed()
    return any(failure.version == version for failure in failed)


def _settlements(database: sqlite3.Connection, settled: list[Settled], verdict: Verdict) -> None:
    rows = database.execute("SELECT t.version, u.device, u.round, u.sha256 FROM updates u JOIN trainings t ON t.id=u.training")
    stored = Counter(Settled(r["device"], r["version"], r["round"], bytes(r["sha256"])) for r in rows)
    verdict.settled, verdict.stored = len(set(settled)), sum(stored.values())
    for one in sorted(set(settled) - stored.keys(), key=repr):
        verdict.lost += 1
        verdict.complaints.append(f"{one.device} settled round {one.round} of version {one.version}, the ledger has it not")
    places = Counter((one.device, one.version, one.round) for one in stored.elements())
    for place, count in places.items():
        if count > 1:
            verdict.double += count - 1
            verdict.complaints.append(f"{place} stands in the ledger {count} times")


def _uncounted(database: sqlite3.Connection, verdict: Verdict) -> None:
    rows = database.execute(
        """SELECT u.device, u.round, t.version FROM updates u JOIN trainings t ON t.id=u.training
           WHERE u.counted IS NULL AND u.received < (SELECT MAX(r.closed) FROM rounds r WHERE r.training=u.training)"""
    )
    for row in rows:
        verdict.lost += 1
        verdict.complaints.append(f"{row['device']}'s update for round {row['round']} of {row['version']} was never counted")


def _weights(database: sqlite3.Connection, folded: list[Folded], parents: tuple[Path, ...], verdict: Verdict) -> None:
    known = {(one.training, one.device, one.round): one for one in folded}
    rounds = database.execute(
        "SELECT training, round, weights, result FROM rounds WHERE result IS NOT NULL ORDER BY training, round"
    )
    for row in rounds.fetchall():
        before, after = (np.frombuffer(_parent(parents, bytes(row[name])), "<f4") for name in ("weights", "result"))
        counted = database.execute(
            "SELECT device, round FROM updates WHERE training=? AND counted=?", (row["training"], row["round"])
        ).fetchall()
        updates = [(known[row["training"], u["device"], u["round"]], row["round"] - u["round"]) for u in counted]
        verdict.rounds += 1
        if not np.allclose(before + mean_of(updates, len(before)), after, atol=TOLERANCE):
            verdict.double += 1
            verdict.complaints.append(
                f"round {row['round']} of training {row['training']} is not the mean of its {len(updates)} updates"
            )


def _parent(parents: tuple[Path, ...], sha256: bytes) -> bytes:
    return next(path for parent in parents if (path := parent / sha256.hex()).exists()).read_bytes()
