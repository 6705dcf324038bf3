"""Retrained codebooks in a push: what they are offered for, what is installed, what rounds are sent in, and what is refused."""

import hashlib
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import toyboard
from edgefl.cli.push import push as command
from edgefl.codec.marks import gone
from edgefl.codec.weights import Precision, decode_weights, encode_weights, weights_length
from edgefl.compress.budget import Candidate, Structure, candidates
from edgefl.compress.evidence import Demand
from edgefl.compress.forms import CODEBOOK
from edgefl.compress.planner import Budget, Planned
from edgefl.compress.planner import plan as plan_offers
from edgefl.compress.sensitivity import Baseline
from edgefl.device import hands
from edgefl.device.conditions import working_bytes
from edgefl.errors import DataError, ModelError
from edgefl.examples import Examples, unlabelled
from edgefl.layout import Layout, Tensor
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.plan import Plan
from edgefl.profile import Profile
from edgefl.server.founding import create_fleet
from edgefl.server.history import Histories
from edgefl.server.keys import online_signer
from edgefl.server.service import Service
from edgefl.server.teaching import Pupil
from edgefl.server.variants import Healed, load_parent, load_variants
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import start_training
from edgefl.store.offers import offered
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import get_version, variants
from edgefl.wire import topics
from toytrainer import InlineTrainer

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  needs torch

from edgefl.export.models import ModelSource, load_factory  # noqa: E402  needs torch
from edgefl.export.tensors import layout_of, vector_of  # noqa: E402  needs torch
from edgefl.server import fitting  # noqa: E402  needs torch
from edgefl.server.cuts import Cut  # noqa: E402  needs torch
from edgefl.server.push import PushRequest, push  # noqa: E402  needs torch
from edgefl.server.retraining import Retrainer, Retraining, check_apart  # noqa: E402  needs torch
from edgefl.server.sensing import Judge, Offered  # noqa: E402  needs torch

MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (3000,)

def plain():
    return Window(nn.Linear(3000, 4))
"""


def examples(count: int, seed: int) -> Examples:
    """Four classes around points that differ in the first tenth of their coordinates."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((4, 3000)).astype(np.float32)
    centres[:, 300:] = 0.0
    y = rng.integers(0, 4, count)
    return Examples(0.25 * centres[y] + rng.standard_normal((count, 3000)).astype(np.float32), y)


def board(name: str, kib: int) -> Profile:
    """A profile with this much room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=kib, memory_mb=2048,
        threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",), reason="",
    )  # fmt: skip


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A new fleet, and the model in the current directory."""
    (tmp_path / "retrained.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "retrained", raising=False)
    return create_fleet(tmp_path / "fleet", name="test")


def trained(source: ModelSource) -> nn.Module:
    """A module that knows the classes. It has no channels to prune, so that it fits as it is or not at all."""
    module, known = source.build(seed=1), examples(2000, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(torch.from_numpy(known.x)), torch.from_numpy(known.y)).backward()
        optimizer.step()
    return module


@pytest.mark.slow
def test_what_only_just_does_not_fit_arrives_as_a_codebook(fleet: Fleet, tmp_path: Path) -> None:
    """A model too large in int4 is retrained and fits; rounds are int4, and the board asks for the room that was planned."""
    from safetensors.numpy import save_file

    module = trained(load_factory("retrained:plain"))
    layout = layout_of(module)
    views = layout.views(vector_of(module))
    save_file({name: value.copy() for name, value in views.items()}, tmp_path / "w.safetensors")
    request = PushRequest(
        "windows", "retrained:plain", tmp_path / "w.safetensors", batch=4, holdout=examples(600, 2),
        retraining=Retraining(examples(1500, 3), steps=300),
    )  # fmt: skip
    said: list[str] = []
    (whole,) = push(fleet, request, (board("big", 9999),), now=1.0, on_progress=said.append)
    assert not any("retraining" in line for line in said)
    graphs = whole.footprint - Candidate(Structure("w1", 1.0, layout), Precision.FP32, 0).footprint
    coarse = Candidate(Structure("w1", 1.0, layout), Precision.INT4, graphs)
    (part,) = push(fleet, request, (board("small", coarse.footprint // 1024),), now=1.0, on_progress=said.append)
    assert any(line.startswith("w1 costs") for line in said)
    assert part.variant == "w1-codebook"
    assert part.precision == "codebook"
    assert part.footprint <= part.budget < coarse.footprint
    assert part.accuracy is not None
    assert whole.accuracy is not None
    assert part.accuracy > whole.accuracy - 0.06
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "windows", 2)
        (record,) = variants(database, "windows", 2)
        (view,) = load_variants(database, version, blobs).values()
        parent = load_parent(blobs, version.weights)
        file = blobs.get(record.manifest.file("weights").sha256)
        record_of = type("Record", (), {"model": "windows", "version": 2, "plan": None})
        histories = Histories(database, blobs, record_of, {view.name: view})  # type: ignore[arg-type]  # it only looks at these
        start = histories._weights_of(view.name, 0).vector
    assert len(file) < 0.6 * weights_length(layout, Precision.INT4)
    assert encode_weights(decode_weights(file, layout), layout, Precision.CODEBOOK) == file
    np.testing.assert_array_equal(start, decode_weights(file, layout))
    assert view.precision == Precision.INT4
    assert view.weights(parent) == file
    moved = parent + np.linspace(-1e-3, 1e-3, len(parent), dtype=np.float32)
    assert view.weights(moved) == encode_weights(view.healed.after(moved, layout), layout, Precision.INT4)
    assert part.footprint == part.bytes + working_bytes(record.manifest)


@pytest.mark.slow
def test_a_codebook_is_trained_in_rounds(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board begins with what it holds, goes on from that and what was learnt, and what it learns arrives in the parent."""
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    module, profile, now = trained(load_factory("retrained:plain")), board("small", 9999), time.time()
    weights = tmp_path / "w.pt"
    torch.save(module.state_dict(), weights)
    # What would not fit is offered by the planner alone; here it is chosen whatever fits.
    monkeypatch.setattr(fitting, "choose", lambda *given: chosen(given[2]))
    monkeypatch.setattr(Retrainer, "wanted", lambda self, offers, *_: () if self._done else as_codebook(offers))
    retraining = Retraining(examples(500, 3), steps=50)
    request = PushRequest("windows", "retrained:plain", weights, batch=8, holdout=examples(200, 2), retraining=retraining)
    with closing(open_database(fleet.database)) as database, transaction(database):
        add_devices(database, [Device("a", "small", "01", now)])
    (pushed,) = push(fleet, request, (profile,), now=now)
    assert pushed.variant == "w1-codebook"
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "windows", 1)
        plan = Plan(rounds=2, cohort=1, quorum=1, deadline=60.0, sparsity=0.5, bits=4)
        start_training(database, version, plan, "", now)
        root = documents(database)["1.root"]
        (view,) = load_variants(database, version, blobs).values()
    data = examples(64, 5)
    broker, passed = MemoryBroker(), 0.0
    link = MemoryLink(broker, "server", clean_session=False)
    times = {"clock": lambda: passed, "wall": lambda: now + passed}
    agent = toyboard.real_board(
        tmp_path / "board", root, broker, times, data.x, data.y, id="a", profile="small", storage_kib=9999
    )
    link.subscribe(topics.ALL_UP)
    with closing(open_database(fleet.database, busy=0.1)) as database:
        service = Service(database, blobs, link, online_signer(fleet), **times)
        agent._begin()
        try:
            for _ in range(2000):
                service._turn()
                agent._turn()
                passed += 0.1
                if database.execute("SELECT state FROM trainings").fetchone()[0] == "finished":
                    break
        finally:
            agent._hands.close()
        results = [row[0] for row in database.execute("SELECT result FROM rounds ORDER BY round")]
        updates = [row[0] for row in database.execute("SELECT data FROM updates ORDER BY round")]
        started = [offered(database, "windows", 1, number, view.name) for number in (1, 2)]
    assert len(results) == len(updates) == 2
    before, after = load_parent(blobs, version.weights), load_parent(blobs, results[-1])
    assert np.count_nonzero(after != before) > 0.3 * len(before)
    pushed_file = view.manifest.file("weights").sha256
    assert started[0] == pushed_file != started[1]
    assert view.healed is not None
    assert view.weights(after) == encode_weights(view.healed.after(after, view.layout), view.layout, Precision.INT4)
    assert blobs.has(hashlib.sha256(view.weights(after)).digest())


def as_codebook(offers: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The first of them, to be retrained."""
    return (replace(offers[0], precision=Precision.CODEBOOK, form=CODEBOOK),)


def chosen(offers: Sequence[Candidate]) -> tuple[Candidate, Planned[Candidate]]:
    """The codebook if there is one, otherwise the first."""
    return next((one for one in offers if one.precision == Precision.CODEBOOK), offers[0]), plan_offers(offers, Budget(10**9))


def test_healed_weights_move_with_the_parent() -> None:
    """Unmoved they are the pushed ones; what healed fades with the parent's way; what is gone from that is gone."""
    layout, rng = Layout((Tensor("a", (4, 10)), Tensor("b", (4,)))), np.random.default_rng(0)
    cut, weights = (rng.standard_normal(44).astype(np.float32) for _ in range(2))
    cut[3] = 0.0
    healed = Healed(b"", weights, cut)
    assert not healed.moved(cut.copy())
    np.testing.assert_array_equal(healed.after(cut, layout), weights)
    shares = []
    for way in (0.01, 0.1, 10.0):
        further = cut.copy()
        further[0] += np.float32(way * np.linalg.norm(weights - cut))
        assert healed.moved(further)
        shares.append(float(np.mean((healed.after(further, layout) - further) / (weights - cut))))
    np.testing.assert_allclose(shares, [math.exp(-0.1), math.exp(-1.0), 0.0], atol=1e-3)
    pruned = cut.copy()
    pruned[3] = np.float32(-0.0)
    assert healed.moved(pruned)
    assert list(np.flatnonzero(gone(healed.after(pruned, layout), layout))) == [3]


def test_statistics_do_not_make_a_healing_fade() -> None:
    """Whatever the scale of the inputs, and so of running statistics, a healing fades as weights are learned."""
    layout, rng = Layout((Tensor("a", (4, 10)), Tensor("v", (4,), "state"))), np.random.default_rng(0)
    cut, weights = (rng.random(44).astype(np.float32) for _ in range(2))
    part = cut.copy()
    part[40:] *= np.float32(8000.0)
    fresh = Healed(b"", weights, cut).after(part, layout)
    np.testing.assert_allclose(fresh[:40], weights[:40], rtol=1e-5)
    part[:40] += np.float32(1000.0)
    np.testing.assert_array_equal(Healed(b"", weights, cut).after(part, layout), part)


def test_a_healed_variance_stays_positive() -> None:
    """Statistics of a variant lie between the parent's and its own, wherever these have gone."""
    layout = Layout((Tensor("a", (2, 10)), Tensor("v", (1,), "state")))
    cut, weights, part = (np.full(21, value, dtype=np.float32) for value in (2.0, 0.5, 2.0))
    part[20], part[:20] = 0.125, 2.05
    assert 0.125 < Healed(b"", weights, cut).after(part, layout)[20] < 0.5


def test_a_healed_variant_is_taught_from_its_own_weights() -> None:
    """What a lesson changes is a difference from what its devices hold, and moves the parent by as much."""
    layout, rng = Layout((Tensor("a", (2, 10)),)), np.random.default_rng(0)
    parent, weights = (rng.standard_normal(size).astype(np.float32) for size in (40, 20))
    index = np.arange(0, 40, 2)
    engine = type("Engine", (), {"layout": layout})
    pupil = Pupil(engine, index, 1.0, Healed(b"", weights, parent[index]))  # type: ignore[arg-type]  # only its layout counts
    np.testing.assert_array_equal(pupil.start(parent), weights)
    np.testing.assert_array_equal(pupil.start(parent + np.float32(100.0)), parent[index] + np.float32(100.0))


LAYOUTS = {name: Layout((Tensor("a", (rows, 1000)),)) for name, rows in (("whole", 90), ("cut", 60), ("least", 20))}
DROPS = {"whole": 0.0, "cut": 0.05, "least": 0.4}


def retrainer(source: ModelSource, retraining: Retraining) -> Retrainer:
    """With three structures, of which nothing is built."""
    baseline = Baseline(0.9, 0.1, 1000)
    cuts = {name: Cut(Structure(name, 1.0, layout), source, np.arange(layout.size)) for name, layout in LAYOUTS.items()}
    sample = examples(10, 1)
    losses = dict.fromkeys((Precision.FP32, Precision.INT4), 0.0)
    offered = Offered(cuts, DROPS, losses, baseline, "a look", Judge(sample, np.ones(10), baseline))
    return Retrainer(source, vector_of(source.build()), offered, retraining, lambda _: None)


def test_retrained_is_what_the_profile_cannot_have_otherwise(fleet: Fleet) -> None:  # noqa: ARG001  its directory
    """What would fit as a codebook and is cut no further than the profile's own; nothing for who has the best; each once."""
    one = retrainer(load_factory("retrained:plain"), Retraining(examples(50, 3)))
    structures = [Structure(name, 1.0, layout) for name, layout in LAYOUTS.items()]

    def predicted(structure: Structure, precision: Precision) -> float | None:
        return 0.9 - DROPS[structure.name] if precision in (Precision.FP32, Precision.INT4) else None

    offers = candidates(structures, {}, predicted=predicted)
    by_name = {offer.name: offer for offer in offers}
    tight = Budget(by_name["whole-int4"].footprint - 5000)
    assert [cut.structure.name for cut in one.wanted(offers, by_name["cut-int4"], tight)] == ["whole", "cut"]
    assert one.wanted(offers, by_name["whole-fp32"], Budget(10**9)) == ()
    tiny = Budget(by_name["cut-int4"].footprint - 3000)
    assert [cut.structure.name for cut in one.wanted(offers, by_name["least-int4"], tiny)] == ["cut", "least"]
    assert [cut.structure.name for cut in one.wanted(offers, None, tiny)] == ["cut", "least"]
    assert one.wanted(offers, None, Budget(1000)) == ()


def test_an_estimate_keeps_nothing_from_being_retrained(fleet: Fleet) -> None:  # noqa: ARG001  its directory
    """However much memory a structure is thought to take; a run of one that is estimated to take no more does."""
    one = retrainer(load_factory("retrained:plain"), Retraining(examples(50, 3)))
    thought, proved = Demand(500 << 20, 0.0, measured=False), Demand(150 << 20, 1.0, measured=True)
    structures = [Structure(name, 1.0, layout) for name, layout in LAYOUTS.items()]
    offers = [Candidate(each, Precision.INT4, 0, 0.9 - DROPS[each.name], demand=thought) for each in structures]
    budget = Budget(10**9, 100 << 20)
    assert [cut.structure.name for cut in one.wanted(offers, None, budget)] == ["whole", "cut"]
    offers[1] = replace(offers[1], demand=proved)
    assert [cut.structure.name for cut in one.wanted(offers, None, budget)] == ["least"]


def test_what_cannot_be_retrained_is_said(fleet: Fleet) -> None:
    """Without a hold-out, on the hold-out itself, on data of another shape, or without labels where they are asked for."""
    known, others, source = examples(100, 1), examples(100, 2), load_factory("retrained:plain")
    check_apart(None, None)
    check_apart(Retraining(others), known)
    with pytest.raises(DataError, match="cannot be judged"):
        check_apart(Retraining(others), None)
    with pytest.raises(DataError, match="100 of 100 held-out examples in both"):
        check_apart(Retraining(known), known)
    with pytest.raises(DataError, match="steps from 1"):
        Retraining(known, steps=0)
    with pytest.raises(DataError, match="does not fit the model"):
        retrainer(source, Retraining(unlabelled(np.zeros((5, 2999), dtype=np.float32))))
    retrainer(source, Retraining(unlabelled(others.x)))
    with pytest.raises(DataError, match="no class labels"):
        retrainer(source, Retraining(unlabelled(others.x), labels=True))
    done = CliRunner().invoke(
        command, ["retrained:plain", "--retrain", "digits:", "--profile", "rpi-zero-2w", "--fleet", str(fleet.path)]
    )
    assert isinstance(done.exception, DataError)
    assert "Give --holdout" in str(done.exception)
    blind = Offered({}, {}, {}, None, "nobody looked")
    with pytest.raises(ModelError, match="nobody looked"):
        Retrainer(source, np.zeros(1, dtype=np.float32), blind, Retraining(others), lambda _: None)
