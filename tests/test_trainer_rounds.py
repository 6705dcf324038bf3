"""The trainer over rounds and restarts: what was sent and what is kept are together all that was learnt."""

from pathlib import Path

import numpy as np
import pytest

from edgefl.codec.update import decode as decode_update
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.job import Job
from edgefl.device.trainer import Trainer
from edgefl.store.outbox import read_residual, read_update
from edgefl.wire.rounds import Task
from toytrainer import LAYOUT, ScriptedEngine, delta_of


def job(directory: Path, number: int) -> Job:
    """A job for the scripted engine."""
    weights = encode_weights(np.full(LAYOUT.size, number, dtype=np.float32), LAYOUT, Precision.FP32)
    (directory / "weights").write_bytes(weights)
    np.savez(directory / "data.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64))
    return Job(
        device="cam-01",
        version=1,
        variant="w1-fp32",
        round=number,
        engine="portable",
        layout=LAYOUT,
        input_shape=(3,),
        classes=2,
        batch=4,
        graphs={},
        weights=str(directory / "weights"),
        source=f"npz:{directory / 'data.npz'}",
        task=Task(1, 0.1, 0.05, 3, 1.0, 0),
        outbox=str(directory / "outbox"),
        settled=str(directory / "settled"),
        personal=str(directory / "personal"),
    )


def test_what_was_sent_and_what_was_kept_is_the_whole_delta_round_after_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over any number of rounds and restarts, the updates and the last residual add up to all that was learnt."""
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
    learnt, sent = np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
    for number in range(1, 6):
        Trainer(1).run(job(tmp_path, number))  # a new process each time, as after a power cut
        if number == 3:
            Trainer(1).run(job(tmp_path, number))  # cut off before the agent heard of it: trained again from the same residual
        learnt += delta_of(number)
        sent += decode_update(read_update(tmp_path / "outbox"), LAYOUT.size).dense()
        (tmp_path / "outbox").rename(tmp_path / "settled")
    kept = read_residual(tmp_path / "settled")
    assert kept is not None
    np.testing.assert_allclose(sent + np.frombuffer(kept[1], "<f4"), learnt, atol=1e-4)
