"""Bytes on the wire and accuracy of one federated task, beside peers: `python -m benchmarks.uplink --peers DIR --json FILE`.

Model: one task (data, split, first weights, local epochs, batch, learning rate, rounds) is given to whole systems, whose sockets
are counted by a proxy, and to codecs alone, whose output is counted: edgefl over its broker and Flower over its own transport,
both with TLS; then OpenFL's STC pipeline and NNCodec, and plain float32, on the same task in one process. docs/benchmarks.md says
what is compared with what.

Rules: accuracy stands beside every number of bytes. A peer that does not install or run is left out, and the report says why.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FrameType

import msgspec

import edgefl
from benchmarks.uplink_codecs import CodecRequest, run_codec
from benchmarks.uplink_edgefl import EdgeflRequest, run_edgefl
from benchmarks.uplink_flower import FlowerRequest, run_flower
from benchmarks.uplink_peers import Peer, install
from benchmarks.uplink_result import LeftOutError, Row
from benchmarks.uplink_table import HEADING, comparison, line, ratios
from benchmarks.uplink_task import Setting, write_task
from edgefl.brokers.mosquitto import find_mosquitto

EDGEFL_OPTIONS = ("", "--sparsity 0.01 --bits 2 --downlink-sparsity 0.05")
"""The command's defaults, and a plan for fewer bytes."""
CODECS: Mapping[str, Sequence[tuple[str, str, Mapping[str, object]]]] = {
    "openfl": (
        ("STC p=0.1, as shipped", "openfl_stc", {}),
        ("STC p=0.1 + feedback", "openfl_stc", {"feedback": True}),
    ),
    "nncodec": (
        ("its FL settings", "nncodec_updates", {"feedback": True}),
        ("98 % zeros", "nncodec_updates", {"feedback": True, "sparsity": 0.98, "structured": 0.0, "nonweight_qp": -40}),
    ),
}
"""Peer -> rows: what the label says, module beside the loop, options of the codec."""
DIGITS_EPOCHS, MNIST_EPOCHS = 4, 1

Runner = Callable[[Path, Setting, int, Path], Row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, print a table, and write the numbers."""
    given = _arguments(arguments)
    signal.signal(signal.SIGTERM, _end)  # so that everything that was started is ended too
    setting = Setting(given.data, given.devices, given.rounds, given.epochs, given.batch, given.learning_rate, given.alpha)
    left_out: dict[str, str] = {}
    peers = _peers(given, left_out)
    rows: list[Row] = []
    print(HEADING, flush=True)
    with _workspace(given.keep) as workspace:
        for seed in given.seeds:
            task = write_task(setting, seed, workspace / f"task-{seed}")
            for number, (label, run) in enumerate(_runners(given, peers)):
                try:
                    rows.append(run(task, setting, seed, workspace / f"run-{seed}-{number}"))
                    print(line(rows[-1]), flush=True)
                except LeftOutError as error:
                    left_out[f"{label}, seed {seed}"] = str(error)
            _write(given, setting, peers, rows, left_out)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"\n{comparison(ratios(rows))}")
    if not rows:
        sys.exit("nothing could be measured")


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    sys.exit(128 + number)


def _write(
    given: argparse.Namespace, setting: Setting, peers: Mapping[str, Peer], rows: Sequence[Row], left_out: Mapping[str, str]
) -> None:
    """Write the report as far as it is known; after each seed, for a run of many seeds is long."""
    if given.json is None:
        return
    report = {
        "rows": msgspec.to_builtins(rows),
        "ratios": msgspec.to_builtins(ratios(rows)),
        "left_out": left_out,
        "task": {**asdict(setting), "data": str(setting.data or "digits")},
        **_surroundings(given.broker, peers),
    }
    given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uplink", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="environments of the peers, made there with pip")
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's four files (default: scikit-learn's digits)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of split, weights and order")
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--epochs", type=int, help=f"default: {DIGITS_EPOCHS} on digits, {MNIST_EPOCHS} on MNIST")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet split (default: %(default)s)")
    parser.add_argument("--broker", choices=["auto", "mosquitto", "embedded"], default="auto")
    parser.add_argument("--edgefl", action="append", metavar="OPTIONS", help="of `edgefl train start`; a row for each")
    parser.add_argument("--idle", type=float, default=35.0, metavar="SECONDS", help="how long to count idle traffic")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep tasks and logs in this new directory")
    parser.add_argument("--quick", action="store_true", help="edgefl and float32 alone, three rounds: to see that it works")
    given = parser.parse_args(arguments)
    if given.quick:
        given.peers, given.devices, given.rounds, given.idle = None, 3, 3, 2.0
    given.edgefl = given.edgefl or list(EDGEFL_OPTIONS[:1] if given.quick else EDGEFL_OPTIONS)
    given.epochs = given.epochs or (DIGITS_EPOCHS if given.data is None else MNIST_EPOCHS)
    return given


@contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    """A directory that is kept if it was asked for, and removed otherwise."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="edgefl-uplink-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _peers(given: argparse.Namespace, left_out: dict[str, str]) -> dict[str, Peer]:
    """The environments that could be made."""
    found: dict[str, Peer] = {}
    for name in ("flwr", *CODECS):
        try:
            if given.peers is None:
                raise LeftOutError("no --peers directory for its environment")
            found[name] = install(name, given.peers)
        except LeftOutError as error:
            left_out[name] = str(error)
    return found


def _runners(given: argparse.Namespace, peers: Mapping[str, Peer]) -> Iterator[tuple[str, Runner]]:
    """What is run for each seed, in order; idle traffic is counted once per system."""
    for number, options in enumerate(given.edgefl):
        edgefl = EdgeflRequest(shlex.split(options), given.broker, 0.0 if number else given.idle)
        yield edgefl.label, partial(run_edgefl, edgefl)
    if "flwr" in peers:
        flower = FlowerRequest(peers["flwr"], given.idle)
        yield flower.label, partial(run_flower, flower)
    codecs = [CodecRequest("dense", "float32", Path(sys.executable), "dense", {})]
    for name, entries in CODECS.items():
        if name in peers:
            python, title = peers[name].program("python"), f"{name} {peers[name].version}"
            codecs += [CodecRequest(name, f"{title} {label}", python, module, options) for label, module, options in entries]
    for codec in codecs:
        yield codec.label, partial(run_codec, codec)


def _surroundings(broker: str, peers: Mapping[str, Peer]) -> dict[str, object]:
    """What all of it ran on."""
    mosquitto = find_mosquitto() if broker != "embedded" else None
    return {
        "broker": _mosquitto_version(mosquitto) if mosquitto else f"embedded (amqtt {metadata.version('amqtt')})",
        "transport": "TLS on both systems; bytes are of everything inside TCP, without TCP and IP headers",
        "versions": {
            "python": platform.python_version(),
            "edgefl": edgefl.__version__,
            **{name: metadata.version(name) for name in ("numpy", "paho-mqtt", "torch")},
            **{f"{name} environment": dict(peer.versions) for name, peer in peers.items()},
        },
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def _mosquitto_version(program: str) -> str:
    """What `mosquitto -h` says in its first line; it has no option for this alone, and ends with status 3."""
    said = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip() or "mosquitto"


if __name__ == "__main__":
    main()
