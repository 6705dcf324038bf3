"""Federated averaging in one process, with every update going through a peer's codec: `python loop.py TASK CODEC OPTIONS OUT`.

Model: in each round every device trains from the current parameters, its delta goes through its own instance of the codec, and
the mean of what the codec gives back, weighted by the numbers of examples, is added to the parameters. CODEC is a module beside
this file with a class `Codec`; OPTIONS is a JSON object of its arguments, and `"feedback": true` puts error feedback around a
codec that has none: what one update lost is added to the next. OUT receives the numbers as JSON; lengths are of what the codec
writes, without any transport.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from perceptron import Parameters, Task, accuracy


class Codec(Protocol):
    """One device's side of a codec and the server's, which may remember what passed between them."""

    def send(self, delta: Parameters) -> tuple[int, Parameters]:
        """Bytes that the delta takes, and what the server reads from them."""
        ...


class Feedback:
    """A codec with a residual around it (Seide et al., 1-bit SGD, Interspeech 2014)."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._residual: Parameters = {}

    def send(self, delta: Parameters) -> tuple[int, Parameters]:
        """As the codec does, of delta and residual."""
        wanted = {name: value + self._residual.get(name, np.float32(0.0)) for name, value in delta.items()}
        length, read = self._codec.send(wanted)
        self._residual = {name: value - read[name] for name, value in wanted.items()}
        return length, read


def run(task: Task, codecs: list[Codec]) -> dict[str, Any]:
    """All rounds; accuracy and bytes of each, and milliseconds that an update took in the codec, both ways."""
    parameters, test = task.start(), task.test()
    rounds: list[dict[str, Any]] = []
    spent = 0.0
    for number in range(1, task.rounds + 1):
        lengths: list[int] = []
        total = {name: np.zeros_like(value) for name, value in parameters.items()}
        examples = 0
        for device, codec in enumerate(codecs, 1):
            trained = task.trained(parameters, device, number)
            start = time.perf_counter()
            length, read = codec.send({name: trained[name] - value for name, value in parameters.items()})
            spent += time.perf_counter() - start
            count = len(task.shard(device)[1])
            lengths.append(int(length))
            examples += count
            for name in total:
                total[name] += np.float32(count) * read[name]
        parameters = {name: value + total[name] / np.float32(examples) for name, value in parameters.items()}
        rounds.append({"round": number, "accuracy": accuracy(parameters, test), "lengths": lengths})
    return {"rounds": rounds, "codec_ms": 1000.0 * spent / (task.rounds * len(codecs))}


def main() -> None:
    """Run what the arguments say."""
    directory, name, given, out = sys.argv[1:]
    task, module, options = Task(Path(directory)), importlib.import_module(name), json.loads(given)
    feedback = options.pop("feedback", False)
    codecs = [module.Codec(device=device, **options) for device in range(1, task.devices + 1)]
    start = time.perf_counter()
    result = run(task, [Feedback(codec) if feedback else codec for codec in codecs])
    result["seconds"] = time.perf_counter() - start
    Path(out).write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
