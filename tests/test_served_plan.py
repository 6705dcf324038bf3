"""What a board may hold that only answers, by the planner's figures alone; what its profile, its device and its session say."""

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toyboard as toy
from edgefl.codec.weights import Precision, weights_length
from edgefl.compress.budget import Candidate, Resting, Structure, candidates
from edgefl.compress.choice import choose
from edgefl.compress.cost import BASE, Work
from edgefl.compress.forms import CODEBOOK, FORMS, forms
from edgefl.compress.planner import Budget, plan
from edgefl.device.conditions import working_bytes
from edgefl.device.config import DeviceConfig
from edgefl.device.diagnosis import Measured
from edgefl.device.doctor import judge_data, judge_engine, judge_model
from edgefl.device.events import OrderHeard
from edgefl.device.session import step
from edgefl.device.state import Session
from edgefl.device.trust import believed_manifest
from edgefl.errors import FitError, MessageError, ProfileError
from edgefl.layout import Layout, Tensor
from edgefl.link.memory_broker import MemoryBroker
from edgefl.profile import load_profile, trains
from edgefl.server.explained import explain, table
from edgefl.wire.topics import target_path
from toyclock import START, Clock
from toyoffice import DEVICE, MODEL, TASK, Office

PROFILE = """
title = "Test board"
soc = "One core"
architecture = "aarch64"
cores = 4
ram_mb = 512
storage_kib = 1024
memory_mb = 256
threads = 3
link_kbps = 1000
engine = "inference"
sources = ["slowdown: a data sheet"]
"""
WORK = Work(activations=500, reuse=(("a", 9),))
STRUCTURES = [Structure(f"s{rows}", 1.0, Layout((Tensor("a", (rows, 100)),)), WORK) for rows in (90, 60, 20)]
LOSSES = {Precision.FP32: 0.0, Precision.FP16: 0.0, Precision.INT8: 0.001, Precision.INT4: 0.01}
RESTING = {
    (one.name, form.name): Resting(int(form.hoped * weights_length(one.layout, Precision.INT4)), one.layout.size / 10_000, form)
    for one in STRUCTURES
    for form in FORMS
}


def offers(*, answers: bool) -> tuple[Candidate, ...]:
    """What a board is offered that trains, or one that only answers; larger structures are more accurate."""

    def predicted(one: Structure, precision: Precision) -> float:
        return one.layout.size / 10_000 - LOSSES[precision]

    graphs = {one.name: 700 for one in STRUCTURES}
    return candidates(STRUCTURES, graphs, predicted=predicted, resting=RESTING, trains=not answers)


def test_its_footprint_is_its_files() -> None:
    """No rounds, no residuals: what travels is what is stored, at any precision; memory is of answers, and no step."""
    for one in offers(answers=True):
        assert one.footprint == one.file_bytes == 700 + one.weight_bytes
        assert one.estimate.memory == BASE + 4 * (2 * one.layout.size + 64 * WORK.activations)
        assert one.estimate.step == 0.0
    one = offers(answers=True)[0]
    assert replace(one, trains=True).footprint == one.footprint + 2 * one.round_bytes + 8 * one.layout.size


def test_it_may_have_every_form_and_a_board_that_trains_one() -> None:
    """Codebooks pruned further, and ternary, are for boards that hold nothing beside them."""
    served, trained = ({one.name for one in offers(answers=answers)} for answers in (True, False))
    assert trained < served
    assert {name for name in served - trained if name.startswith("s90")} == {"s90-codebook90", "s90-ternary", "s90-codebook95"}
    assert forms(trains=True) == (CODEBOOK,)
    assert [form.hoped for form in FORMS] == sorted((form.hoped for form in FORMS), reverse=True)


@given(st.integers(1_000, 300_000))
def test_it_never_gets_less_than_a_board_that_trains(storage: int) -> None:
    """In the same room: where the one gets something the other gets nothing worse, and what it gets fits and is the best."""
    served, trained = (plan(offers(answers=answers), Budget(storage)) for answers in (True, False))
    if trained.winner:
        assert served.winner
        assert (served.winner.accuracy or 0.0) >= (trained.winner.accuracy or 0.0)
    if served.winner:
        assert served.winner.file_bytes <= storage
        better = [one for one in offers(answers=True) if (one.accuracy or 0.0) > (served.winner.accuracy or 0.0)]
        assert all(one.file_bytes > storage for one in better)


def test_it_holds_many_times_the_model() -> None:
    """The least room in which a board trains a model holds one of forty times its parameters as a codebook."""
    rows = 100_000
    trained = Candidate(Structure("s", 1.0, Layout((Tensor("a", (rows, 100)),))), Precision.INT4, 0)
    large = Layout((Tensor("a", (40 * rows, 100)),))
    length = int(CODEBOOK.hoped * weights_length(large, Precision.INT4))
    served = Candidate(Structure("l", 1.0, large), Precision.CODEBOOK, 0, at_rest=length, trains=False, form=CODEBOOK)
    assert served.footprint <= trained.footprint


def test_what_does_not_fit_speaks_of_answers() -> None:
    """The error does not tell somebody to change a batch that is never trained."""
    with pytest.raises(FitError, match="the model cannot answer on profile kiosk") as caught:
        choose("kiosk", Budget(10**9, 1000), offers(answers=True))
    assert "--batch" not in caught.value.remedy


def test_an_explanation_shows_no_step() -> None:
    """Where nothing trains a step is not 0 ms but none."""
    planned = plan(offers(answers=True), Budget(10_000))
    rows = table(explain("kiosk", "inference", Budget(10_000), planned, {}, "a look"))
    assert {row[4] for row in rows} == {"-"}
    assert {row[2] for row in rows if row[0] == "*"} == {f"{planned.winner.file_bytes:,}" if planned.winner else ""}


def test_a_profile_says_by_its_engine_that_its_boards_only_answer(tmp_path: Path) -> None:
    """And cannot say anything of steps, which there are none of."""
    (path := tmp_path / "kiosk.toml").write_text(PROFILE)
    assert not load_profile(path).trains
    assert [trains(engine) for engine in ("portable", "ort-training", "inference", "none")] == [True, True, False, False]
    for more, key in (("slowdown = 2", "slowdown"), ("slowdown = 2\nstep_ms = 3", "step_ms"), ("step_ms = 3", "step_ms")):
        path.write_text(PROFILE + more)
        with pytest.raises(
            ProfileError, match=f"key '{key}' is impossible: expected none on a board that takes no training step"
        ):
            load_profile(path)
    path.write_text(PROFILE.replace("aarch64", "armv7l"))
    with pytest.raises(ProfileError, match="'engine' is impossible"):
        load_profile(path)


OFFICE = Office(MemoryBroker(), Clock())
CONFIG = DeviceConfig(
    id=DEVICE, profile=toy.PROFILE, engine="inference", threads=1, memory_mb=64, storage_kib=64, host="h", port=1,
    fleet=OFFICE.fleet,
)  # fmt: skip


@pytest.mark.parametrize(("own", "made", "taken"), [
    ("inference", "inference", True), ("inference", "portable", False), ("inference", "ort-training", False),
    ("portable", "inference", False), ("ort-training", "inference", False), ("ort-training", "portable", True),
])  # fmt: skip
def test_a_board_holds_what_its_engine_is_for(own: str, made: str, taken: bool) -> None:
    """A board that trains refuses what is only served, as every board of before does, and the other way round."""
    manifest, payload = OFFICE.manifest(3, announce=False, engine=made)
    path, config = target_path(MODEL, toy.PROFILE, 3), msgspec.structs.replace(CONFIG, engine=own)
    if taken:
        assert believed_manifest(payload, path, hashlib.sha256(payload).digest(), config, START) == manifest
    else:
        with pytest.raises(MessageError, match="made for another engine"):
            believed_manifest(payload, path, hashlib.sha256(payload).digest(), config, START)


def test_its_session_takes_part_in_no_round() -> None:
    """Whatever orders are heard, with a task or without: nothing is fetched, trained or adopted, and no room is asked for."""
    trained, _ = OFFICE.manifest(1, announce=False)
    served = msgspec.structs.replace(trained, engine="inference")
    for task in (TASK, None):
        order, _ = OFFICE.order(1, task=task, announce=False)
        assert step(Session(DEVICE, active=trained), OrderHeard(order), 0.0)[1]
        state, effects = step(Session(DEVICE, active=served), OrderHeard(order), 0.0)
        assert (state.work, effects) == (None, ())
    assert working_bytes(trained) > 0
    assert working_bytes(served) == 0


def test_its_doctor_asks_for_no_examples() -> None:
    """A board that only answers is able without a source; one that cannot be read is worth a warning; models are not timed."""
    assert judge_engine("inference", "kiosk", "onnxruntime 1", (), "").state == "ok"
    assert judge_engine("inference", "kiosk", "", (), "").state == "failed"
    assert [judge_data("", 0, "", "", needed=needed).state for needed in (True, False)] == ["failed", "ok"]
    assert [judge_data("npz:x", 0, "gone", "look", needed=needed).state for needed in (True, False)] == ["failed", "warning"]
    found = Measured(model="m", version=1, variant="w1-ternary", engine="inference", step_ms=0.0, peak_rss_mb=70.0)
    assert judge_model(found, 256).text == "w1-ternary of version 1: it answers and does not train, 70 MiB of 256."
