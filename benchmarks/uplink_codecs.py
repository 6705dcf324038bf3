"""Codecs alone: the same task through a codec, in one process of the codec's own environment, see `benchmarks/peers/loop.py`.

Their bytes are what the codec writes, without transport; beside the runs of whole systems they compare with the payload.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.uplink_result import LeftOutError, RoundRow, Row
from benchmarks.uplink_task import Setting

LOOP = Path(__file__).parent / "peers" / "loop.py"
RUN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class CodecRequest:
    """A codec to run.

    Attributes:
        system, label: as in `Row`.
        python: interpreter of the environment that has it.
        module: beside the loop.
        options: of its `Codec`, and `feedback`.
    """

    system: str
    label: str
    python: Path
    module: str
    options: Mapping[str, object]


def run_codec(request: CodecRequest, task: Path, setting: Setting, seed: int, workspace: Path) -> Row:
    """Run the task of this directory through the codec.

    Raises:
        LeftOutError: the codec cannot be loaded or fails.
    """
    workspace.mkdir()
    out = workspace / "result.json"
    command = [request.python, LOOP, task, request.module, json.dumps(dict(request.options)), out]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, env=environment, cwd=workspace, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOutError(f"{request.label}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise LeftOutError(f"{request.label}: {lines[-1] if lines else f'exit status {done.returncode}'}")
    result = json.loads(out.read_text(encoding="utf-8"))
    rounds = result["rounds"]
    sent = sum(sum(r["lengths"]) for r in rounds)
    return Row(
        system=request.system,
        label=request.label,
        seed=seed,
        accuracy=rounds[-1]["accuracy"],
        rounds=setting.rounds,
        devices=setting.devices,
        measured="payload",
        uplink_bytes=sent,
        downlink_bytes=None,
        payload_uplink_bytes=sent,
        dense_uplink_bytes=setting.dense_bytes,
        seconds=round(result["seconds"], 1),
        codec_ms=round(result["codec_ms"], 2),
        history=[
            RoundRow(round=r["round"], accuracy=r["accuracy"], uplink_bytes=sum(r["lengths"]), downlink_bytes=None)
            for r in rounds
        ],
    )
