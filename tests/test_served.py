"""Boards that only answer: what is made for them, what they hold, and how rounds leave them alone."""

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import toyboard
from edgefl.cli.push import push as command
from edgefl.cli.status import status
from edgefl.cli.train import start
from edgefl.codec.weights import Precision, weights_length
from edgefl.compress.budget import Resting, Structure, candidates
from edgefl.compress.forms import FORMS
from edgefl.compress.planner import Budget
from edgefl.compress.sensitivity import Baseline
from edgefl.device import hands
from edgefl.device.config import Bundle
from edgefl.device.examine import examine_models
from edgefl.device.model import Model
from edgefl.device.served import Shelf
from edgefl.errors import FleetError, ModelError
from edgefl.examples import Examples
from edgefl.layout import Layout, Tensor
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.profile import Profile, trains
from edgefl.server.bundle import device_config, trust_of
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.members import _devices
from edgefl.server.service import Service
from edgefl.server.status import fleet_status
from edgefl.server.variants import load_parent, load_variants, variant_of_profile
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import newest_weights
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import able_devices, get_variant, get_version, replace_manifest
from edgefl.strict_toml import write_toml
from edgefl.wire import topics
from toydevice import ToyDevice
from toyfleet import fleet_of_four
from toytrainer import InlineTrainer
from toyupdates import update_of

torch = pytest.importorskip("torch")

from edgefl.export.models import load_factory  # noqa: E402  needs torch
from edgefl.export.tensors import layout_of  # noqa: E402  needs torch
from edgefl.server.push import PushRequest, profiles_in_use, push  # noqa: E402  needs torch
from edgefl.server.retraining import Retrainer, Retraining  # noqa: E402  needs torch
from edgefl.server.sensing import Judge, Offered  # noqa: E402  needs torch

MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (3000,)

def plain():
    return Window(nn.Linear(3000, 4))

def wide():
    return Window(nn.Linear(3000, 16))
"""
ROOM = 80
"""KiB of a small board: less than three files of fp32 and two residuals, more than one file."""


def examples(count: int, seed: int) -> Examples:
    """Four classes around points that differ in the first tenth of their coordinates."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((4, 3000)).astype(np.float32)
    centres[:, 300:] = 0.0
    y = rng.integers(0, 4, count)
    return Examples(0.25 * centres[y] + rng.standard_normal((count, 3000)).astype(np.float32), y)


def board(name: str, kib: int, engine: str = "portable") -> Profile:
    """A profile with this much room."""
    described = {
        "name": name, "title": "a board", "soc": "a chip", "architecture": "x86_64", "cores": 4, "ram_mb": 4096,
        "storage_kib": kib, "memory_mb": 2048, "threads": 1, "link_kbps": 1000, "engine": engine, "sources": ["a data sheet"],
    }  # fmt: skip
    return msgspec.convert(described, Profile)


LEARNER, KIOSK = board("learner", 9999), board("kiosk", ROOM, "inference")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A new fleet with a board of each kind, and the model in the current directory."""
    (tmp_path / "windows.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "windows", raising=False)
    made = create_fleet(tmp_path / "fleet", name="test")
    for profile in (LEARNER, KIOSK):
        text = write_toml(profile).removeprefix(f'name = "{profile.name}"\n')  # which the file's own name says
        (made.path / "profiles" / f"{profile.name}.toml").write_text(text)
    with closing(open_database(made.database)) as database, transaction(database):
        add_devices(database, [Device("a", "learner", "01", 1.0), Device("b", "kiosk", "02", 1.0)])
    return made


class Scene:
    """A fleet's real server and one real agent for each device, in one thread, with a clock on a string."""

    def __init__(self, fleet: Fleet, root: Path) -> None:
        self.broker, self.now, self.passed = MemoryBroker(), time.time(), 0.0
        self.times = {"clock": lambda: self.passed, "wall": lambda: self.now + self.passed}
        link = MemoryLink(self.broker, "server", clean_session=False)
        link.subscribe(topics.ALL_UP)
        self.database = open_database(fleet.database, busy=0.1)
        self.service = Service(self.database, BlobStore(fleet.blobs), link, online_signer(fleet), **self.times)
        first, data = documents(self.database)["1.root"], examples(64, 5)
        self.bundles, self.agents = {}, {}
        for name, profile in (("a", LEARNER), ("b", KIOSK)):
            described = {"id": name, "profile": profile.name, "storage_kib": profile.storage_kib, "engine": profile.engine}
            agent = toyboard.real_board(root / name, first, self.broker, self.times, data.x, data.y, **described)
            agent._begin()
            self.agents[name] = agent
            self.bundles[name] = Bundle(root / name, agent._config)

    def run(self, until, turns=2000) -> None:
        """Let everybody work until something has happened."""
        for _ in range(turns):
            if until():
                return
            self.service._turn()
            for agent in self.agents.values():
                agent._turn()
            self.passed += 0.1
        raise AssertionError("it did not happen")

    def held(self, name: str) -> int:
        """The version that a device has activated; 0 for none."""
        model = self.agents[name]._models.get("windows")
        return model.session.active.version if model and model.session.active else 0

    def close(self) -> None:
        """End everybody."""
        for agent in self.agents.values():
            agent._hands.close()
        self.database.close()


@pytest.mark.slow
def test_a_board_that_only_answers_is_served_and_left_alone(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what a board that trains could not hold, answers with it while others train, and learns with the next release."""
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    request = PushRequest("windows", "windows:plain", batch=8)
    whole, served = push(fleet, request, (LEARNER, KIOSK), now=time.time())
    assert (whole.variant, served.variant) == ("w1-fp32", "w1-fp32")
    assert served.footprint == served.bytes <= served.budget < whole.footprint
    trained = candidates([Structure("w1", 1.0, layout_of(load_factory("windows:plain").build()))], {})
    assert min(one.footprint for one in trained) > served.budget
    assert served.step_ms == 0.0
    assert served.peak_bytes > 0
    scene = Scene(fleet, tmp_path)
    try:
        scene.run(lambda: scene.held("a") == scene.held("b") == 1)
        manifest = get_variant(scene.database, "windows", "kiosk", 1).manifest
        assert {ref.role for ref in manifest.files} == {"eval", "infer", "golden", "weights"}
        assert able_devices(scene.database, "windows", 1) == {"a"}
        model, x = Model(Shelf(scene.bundles["b"], "windows")), examples(9, 6).x
        version = get_version(scene.database, "windows", 1)
        blobs = BlobStore(fleet.blobs)
        first = load_parent(blobs, version.weights)
        np.testing.assert_allclose(model.predict(x).logits, answers(first, x), atol=1e-4)
        begun = CliRunner().invoke(start, ["windows", "--rounds", "2", "--learning-rate", "0.1", "--fleet", str(fleet.path)])
        assert "a round closes with 1 updates" in begun.output
        scene.run(lambda: scene.database.execute("SELECT state FROM trainings").fetchone()[0] == "finished")
        trained = {row[0] for row in scene.database.execute("SELECT DISTINCT device FROM updates")}
        assert trained == {"a"}
        session = scene.agents["b"]._models["windows"].session
        assert (session.work, session.adopted, session.heard) == (None, b"", None)
        np.testing.assert_allclose(model.predict(x).logits, answers(first, x), atol=1e-4)
        now = fleet_status(scene.database, "test")
        assert now.trainings[0].fairness.least == 2
        said = {one.id: one for one in now.devices}
        assert (said["a"].trains, said["b"].trains) == (True, False)
        lines = CliRunner().invoke(status, ["--fleet", str(fleet.path)]).output.splitlines()
        assert [line.endswith("does not train") for line in lines if line[0] in "ab"] == [False, True]
        assert [", only served, " in line for line in lines if " for " in line] == [True, False]
        ((measured, check),) = examine_models(scene.bundles["b"], None)
        assert measured is not None
        assert (measured.step_ms, check.state) == (0.0, "ok")
        learned = load_parent(blobs, newest_weights(scene.database, version)[1])
        assert np.abs(learned - first).max() > 1e-3
        arguments = ["windows:plain", "--name", "windows", "--trained", "--batch", "8", "--explain", "--fleet", str(fleet.path)]
        done = CliRunner().invoke(command, arguments)
        assert "beginning with the newest weights of windows@1, round 2\n" in done.stderr
        assert "kiosk (inference), at most 81,920 bytes of storage, 2048 MiB of memory" in done.stdout
        scene.run(lambda: scene.held("a") == scene.held("b") == 2)
        found = model.predict(x)
        assert found.version == 2
        np.testing.assert_allclose(found.logits, answers(learned, x), atol=1e-4)
    finally:
        scene.close()


def answers(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the model computes with these weights: 4 rows of 3000, then 4 biases."""
    return x @ vector[:12000].reshape(4, 3000).T + vector[12000:]


@pytest.mark.slow
def test_what_is_retrained_rests_in_the_form_that_fits(fleet: Fleet, tmp_path: Path) -> None:
    """One push, one structure, three rooms: int4, a codebook and ternary, each as accurate as measured, each rehearsed."""
    source = load_factory("windows:wide")
    module, known = source.build(), examples(2000, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(known.x)), torch.from_numpy(known.y)).backward()
        optimizer.step()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    retraining = Retraining(examples(1500, 3), steps=100)
    request = PushRequest(
        "windows", "windows:wide", tmp_path / "w.pt", batch=4, holdout=examples(600, 2), retraining=retraining
    )  # fmt: skip
    (exact,) = push(fleet, request, (board("hall", 9999, "inference"),), now=1.0)
    graphs = exact.bytes - weights_length(layout_of(module), Precision.FP32)
    coarse = weights_length(layout_of(module), Precision.INT4)
    rooms = {"gate": 1.05 * coarse, "kiosk": 0.45 * coarse, "badge": 0.2 * coarse}
    boards = [board(name, -(-int(graphs + room) // 1024), "inference") for name, room in rooms.items()]
    explained = []
    made = push(fleet, request, boards, now=2.0, on_planned=explained.append)
    assert [one.variant for one in made] == ["w1-int4", "w1-codebook", "w1-ternary"]
    for one, why in zip(made, explained, strict=True):
        assert one.bytes <= one.footprint <= one.budget
        assert (one.step_ms, one.engine) == (0.0, "inference")
        assert 0 < one.peak_bytes < one.memory_mb << 20
        assert (one.accuracy or 0.0) > (exact.accuracy or 1.0) - 0.1
        assert [row.variant for row in why.frontier if row.chosen] == [one.variant]
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "windows", 2)
        for one in made:
            record = get_variant(database, "windows", one.profile, 2)
            assert (record.precision, record.manifest.trains) == (one.variant.removeprefix("w1-"), False)
        assert load_variants(database, version, BlobStore(fleet.blobs)) == {}
        assert variant_of_profile(database, version) == {}


def test_a_form_that_turns_out_too_long_gives_way_to_the_next() -> None:
    """A structure is retrained in the longest form that is hoped to fit, and not again once one does."""
    layout, baseline = Layout((Tensor("a", (90, 1000)),)), Baseline(0.9, 0.1, 1000)
    losses = dict.fromkeys((Precision.FP32, Precision.INT4), 0.0)
    retrainer, resting = object.__new__(Retrainer), {}
    retrainer._done, retrainer._judge = set(), Judge(examples(1, 1), np.ones(1), baseline)
    retrainer._offered = Offered({}, {"s": 0.0}, losses, baseline, "a look", retrainer._judge)
    room = int(0.41 * weights_length(layout, Precision.INT4))

    def wanted() -> list[str]:
        offered = candidates(
            [Structure("s", 1.0, layout)], {}, predicted=retrainer._offered.predicted, resting=resting, trains=False
        )
        return [one.name for one in retrainer.wanted(offered, None, Budget(room))]

    for form, length in zip(FORMS, (room + 1, None, room), strict=False):
        assert wanted() == [f"s-{form.name}"]
        retrainer._done.add(f"s-{form.name}")
        if length:  # otherwise the file was no shorter than int4
            resting["s", form.name] = Resting(length, 0.85, form)
    assert wanted() == []


def test_its_bundle_says_that_it_only_answers(fleet: Fleet) -> None:
    """A profile in a file becomes the engine in `device.toml`, without a source of examples."""
    config = device_config(fleet, fleet.profiles()["kiosk"], "b", trust_of(fleet), "")
    assert (config.engine, config.data, config.storage_kib) == ("inference", "", ROOM)
    assert [trains(one.engine) for one in profiles_in_use(fleet)] == [False, True]


def test_a_push_begins_with_one_set_of_weights(fleet: Fleet, tmp_path: Path) -> None:
    """With a file or with what the fleet has learned, of which there must be some, and of this very model."""
    with pytest.raises(ModelError, match="one set of weights"):
        push(fleet, PushRequest("windows", "windows:plain", tmp_path / "w.pt", trained=True), (KIOSK,), now=1.0)
    with pytest.raises(FleetError, match="has no model 'windows'"):
        push(fleet, PushRequest("windows", "windows:plain", trained=True), (KIOSK,), now=1.0)
    push(fleet, PushRequest("windows", "windows:plain"), (KIOSK,), now=1.0)
    with pytest.raises(ModelError, match="of another model than the one that is pushed as 'windows'"):
        push(fleet, PushRequest("windows", "windows:wide", trained=True), (KIOSK,), now=1.0)
    refused = CliRunner().invoke(start, ["windows", "--fleet", str(fleet.path)])
    assert "no device of the fleet can train windows@1" in str(refused.exception)


def test_an_update_of_a_board_that_only_answers_is_refused(tmp_path: Path) -> None:
    """Although its variant has the name of one that trains; a round waits for those alone that can train."""
    fleet = fleet_of_four(tmp_path)
    for profile in ("big", "small"):
        record = get_variant(fleet.database, "toy", profile, 1)
        if profile == "small":
            with transaction(fleet.database):
                replace_manifest(fleet.database, msgspec.structs.replace(record.manifest, engine="inference", variant="w1-fp32"))
    assert able_devices(fleet.database, "toy", 1) == {"a", "b"}
    assert _devices(fleet.database, get_version(fleet.database, "toy", 1)) == {"w1-fp32": 2}
    fleet.train(rounds=1, cohort=2)
    served = fleet.serve()
    kiosk = ToyDevice(fleet, "c")
    kiosk.send(1, variant="w1-fp32", data=update_of("c", 1, fleet.wide.size))
    served.turns()
    round_file = served.training.offer.files["w1-fp32"].sha256
    served.service._expected.heard("c", online=True)
    assert served.service._expected.of(round_file) == frozenset()
    receipt = kiosk.hear()
    assert receipt is not None
    assert (receipt.stored, "is not the one of profile small, which is none" in receipt.reason) == (False, True)
    for name in ("a", "b"):
        ToyDevice(fleet, name).send(1)
    served.turns()
    assert served.training.state.finished
