"""A version's trial: what it finds, and what it does not hold against the version."""

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

import make_graphs
import trialversions
from edgefl.codec.golden import encode_golden, golden_inputs
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.trial import try_out
from edgefl.engine.open import open_engine
from edgefl.errors import ModelError
from trialversions import START, VARIANT, trial


def judge(job):
    """The verdict, in this process."""
    return try_out(job, partial(open_engine, threads=1))


def test_a_good_version_passes_and_is_measured(tmp_path):
    """Nothing is wrong, and the accuracy of both versions on the device's own data is told."""
    verdict = judge(trial(tmp_path, before=-START, drop=0.05))
    assert (verdict.code, verdict.version, verdict.accuracy) == ("", 2, 1.0)
    assert verdict.before < 0.5


def test_a_version_that_is_only_served_takes_no_step(tmp_path):
    """It has no training graph, and needs none to pass; wrong outputs fail it as any other."""
    job = trial(tmp_path)
    graphs = {role: path for role, path in job.candidate.graphs.items() if role != "train"}
    served = msgspec.structs.replace(job.candidate, graphs=graphs, engine="inference")
    assert judge(msgspec.structs.replace(job, candidate=served)).code == ""
    assert judge(msgspec.structs.replace(job, candidate=msgspec.structs.replace(served, engine="portable"))).code == "trial-load"
    weights = tmp_path / "new" / "weights"
    weights.write_bytes(encode_weights(START * np.float32(1.5), VARIANT.layout, Precision.FP32))
    assert judge(msgspec.structs.replace(job, candidate=served)).code == "trial-golden"


def test_the_native_engine_is_tried_alike(tmp_path, monkeypatch):
    """A variant of the training build passes and fails as a portable one does."""
    pytest.importorskip("onnxruntime.training")
    native = make_graphs.read("variant-dense-native")
    monkeypatch.setattr(trialversions, "VARIANT", native)
    start = np.frombuffer(native.start, dtype=np.float32)
    (tmp_path / "good").mkdir()
    verdict = judge(trial(tmp_path / "good", vector=start, before=start, drop=0.5))
    assert (verdict.code, verdict.accuracy) == ("", verdict.before)
    (tmp_path / "bad").mkdir()
    assert judge(trial(tmp_path / "bad", "golden", vector=start)).code == "trial-golden"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("golden", "trial-golden", "times what is allowed"),
        ("torn golden", "trial-golden", "does not belong"),
        ("nan", "trial-load", "NaN"),
        ("infer", "trial-load", ""),
        ("eval", "trial-load", ""),
        ("train", "trial-load", ""),
    ],
)
def test_each_file_that_is_wrong_is_found(tmp_path, change, code, words):
    """Whichever file is not what it should be, the trial fails and says what it was."""
    verdict = judge(trial(tmp_path, change))
    assert verdict.code == code
    assert words in verdict.reason


def test_outputs_that_are_not_finite_fail(tmp_path):
    """Weights that are finite but so large that the outputs are not: neither golden outputs nor a loss come of them."""
    huge = np.full_like(START, 3e38)
    with pytest.raises(ModelError, match="NaN or infinite"):
        encode_golden(golden_inputs(VARIANT.input_shape, VARIANT.classes), np.full((4, 3), np.nan, np.float32))
    job = trial(tmp_path)
    Path(job.candidate.weights).write_bytes(encode_weights(huge, VARIANT.layout, Precision.FP32))
    assert judge(job).code == "trial-golden"
    assert judge(msgspec.structs.replace(job, golden="")).code == "trial-metric"


@pytest.mark.parametrize(("drop", "code"), [(0.1, "trial-metric"), (0.99, ""), (1.0, "")])
def test_a_version_that_is_worse_than_before_fails_if_the_floor_says_so(tmp_path, drop, code):
    """The floor is what the version before reaches on the same data, less the drop that is allowed; 1 leaves it out."""
    verdict = judge(trial(tmp_path, vector=-START, before=START, drop=drop))
    assert verdict.code == code
    assert (verdict.before is None) == (drop == 1.0)


def test_what_cannot_be_asked_is_not_held_against_the_version(tmp_path):
    """Without examples, without a golden file, or with a version before that is damaged, the rest of the trial counts."""
    job = trial(tmp_path, before=START, drop=0.0)
    (tmp_path / "old" / "eval").unlink()
    assert judge(job).code == ""
    (tmp_path / "data.npz").unlink()
    verdict = judge(msgspec.structs.replace(job, golden=""))
    assert (verdict.code, verdict.accuracy, verdict.before) == ("", None, None)
