"""`edgefl device run` as a real process: wrong bundles, no broker, the wrong broker, two agents, and its end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from edgefl.device.job import encode_line
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision

HEAVY = ["torch", "onnx", "onnxscript", "amqtt", "sklearn", "rich", "safetensors"]
RUN = f"""
import atexit, json, sys
from edgefl.cli.main import main
known = {[*HEAVY, "onnxruntime", "paho", "numpy"]}
atexit.register(lambda: print("MODULES", json.dumps([m for m in known if m in sys.modules]), file=sys.stderr, flush=True))
main(["device", "run", *sys.argv[1:]])
"""


def free_port():
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    """A fleet with one device, and another fleet, at a port where nobody listens yet."""
    root, port = tmp_path_factory.mktemp("fleet"), free_port()
    fleet = create_fleet(root / "fleet", name="farm", host="127.0.0.1", port=port)
    provision(fleet, ["cam-01"], "rpi-zero-2w", root / "bundles", data="npz:/nonexistent.npz")
    create_fleet(root / "other", name="other", host="127.0.0.1", port=port)
    return root


@pytest.fixture
def bundle(provisioned, tmp_path):
    """A fresh copy of the device's bundle."""
    return shutil.copytree(provisioned / "bundles" / "cam-01", tmp_path / "cam-01")


@contextmanager
def device(*arguments):
    """A running device, with its log in a file; ended afterwards whatever happens."""
    log = os.memfd_create("log")
    environment = {name: value for name, value in os.environ.items() if name not in ("STATE_DIRECTORY", "EDGEFL_DEBUG")}
    process = subprocess.Popen([sys.executable, "-c", RUN, *map(str, arguments)], stdout=log, stderr=log, env=environment)
    process.log = lambda: os.pread(log, 1 << 20, 0).decode()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.close(log)


@contextmanager
def broker(fleet):
    """The fleet's broker."""
    command = [sys.executable, "-m", "edgefl", "broker", "--fleet", str(fleet)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert "ready" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


def until(process, text, seconds=120.0):
    """Wait until the log holds a text."""
    deadline = time.monotonic() + seconds
    while text not in process.log():
        assert process.poll() is None, process.log()
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.02)


def replace(path, old, new):
    """Change a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


REFUSED = {
    "names no source of examples": lambda b: replace(b / "device.toml", "npz:/nonexistent.npz", ""),
    "no such data source": lambda b: replace(b / "device.toml", "npz:/nonexistent.npz", "camera:0"),
    "unknown field `colour`": lambda b: (b / "device.toml").write_text("threads = 3\ncolour = 'red'\n"),
    "is no valid TOML": lambda b: (b / "device.toml").write_bytes(b"id = \xff"),
    "there is no device.toml": shutil.rmtree,
    "device.key is missing or cannot be read": lambda b: (b / "device.key").unlink(),
    "device id 'NO' cannot be used": lambda b: replace(b / "device.toml", '"cam-01"', '"NO"'),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_bundle_that_cannot_work_is_refused_at_once(bundle, words):
    """One line that says what is wrong and what to do, exit code 2, and nothing was begun."""
    REFUSED[words](bundle)
    with device(bundle) as process:
        assert process.wait(120) == 2
        message = [line for line in process.log().splitlines() if not line.startswith("MODULES")]
    assert len(message) == 1
    assert message[0].startswith("error: ")
    assert words in message[0]
    assert not (bundle / "state").exists()


def test_a_state_directory_that_cannot_be_made_is_this_machines_fault(bundle):
    """Exit code 4, so that the service manager tries again."""
    (bundle / "state").write_text("a file")
    with device(bundle) as process:
        assert process.wait(120) == 4
        assert "state" in process.log()


def test_without_a_broker_the_agent_lives_and_says_so_once(bundle):
    """The reason is told once, not at every attempt; a second agent on the same state is refused; SIGTERM ends it cleanly."""
    with device(bundle) as process:
        until(process, "no connection: connection refused")
        with device(bundle) as second:
            assert second.wait(120) == 4
            assert "another agent runs" in second.log()
        time.sleep(1.5)
        assert process.log().count("no connection") == 1
        process.terminate()
        assert process.wait(120) == 0
        (modules,) = [line for line in process.log().splitlines() if line.startswith("MODULES")]
    assert json.loads(modules.removeprefix("MODULES")) == ["paho", "numpy"]
    assert (bundle / "state" / "session").read_text() == "1\n"


@pytest.mark.broker
def test_the_agent_connects_when_the_broker_comes_and_again_after_its_own_death(bundle, provisioned):
    """Started before its broker it finds it; killed, it starts with the next number and what it had."""
    with device(bundle) as process:
        until(process, "no connection")
        with broker(provisioned / "fleet"):
            until(process, "INFO connected")
            process.kill()
            process.wait()
            (bundle / "state" / ".half.0123abcd.tmp").write_text("left behind")
            with device(bundle) as again:
                until(again, "INFO connected")
                again.send_signal(signal.SIGINT)
                assert again.wait(120) == 0
    assert (bundle / "state" / "session").read_text() == "2\n"
    assert not list((bundle / "state").glob(".*.tmp"))


@pytest.mark.broker
def test_a_broker_of_another_authority_is_refused_and_asked_again(bundle, provisioned):
    """A wrong root certificate in the bundle: the agent says which certificate does not hold, once, and lives on."""
    shutil.copy(next((provisioned / "other").rglob("root.crt")), bundle / "ca.crt")
    with broker(provisioned / "fleet"), device(bundle) as process:
        until(process, "the broker's certificate does not hold")
        time.sleep(1.5)
        assert process.poll() is None
        assert process.log().count("no connection") == 1


TRAINER = f"""
import sys
from edgefl.device.trainer import main
main(["1"])
print([m for m in {HEAVY} if m in sys.modules], "onnxruntime" in sys.modules, file=sys.stderr)
"""


def test_the_trainer_loads_neither_torch_nor_onnx(tmp_path):
    """After a real training by the real runtime, in a process as the agent starts it."""
    import make_graphs
    from edgefl.codec.weights import Precision, encode_weights
    from edgefl.device.job import Done, Job, decode_answer
    from edgefl.wire.rounds import Task

    golden = make_graphs.read("variant-dense")
    for role, data in golden.files.items():
        (tmp_path / role).write_bytes(data)
    start = np.frombuffer(golden.start, dtype=np.float32)
    (tmp_path / "weights").write_bytes(encode_weights(start, golden.layout, Precision.FP32))
    np.savez(tmp_path / "data.npz", x=np.ones((8, 6), np.float32), y=np.arange(8) % 3)
    job = Job(
        device="cam-01", version=1, variant="w1-fp32", round=1, engine=golden.engine, layout=golden.layout,
        input_shape=golden.input_shape, classes=golden.classes, batch=golden.batch,
        graphs={role: str(tmp_path / role) for role in golden.files}, weights=str(tmp_path / "weights"),
        source=f"npz:{tmp_path / 'data.npz'}", task=Task(1, 0.1, 0.1, 4, 1.0, 0), outbox=str(tmp_path / "outbox"),
        settled=str(tmp_path / "settled"), recipe=golden.recipe, personal=str(tmp_path / "personal"),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", TRAINER], input=encode_line(job), capture_output=True, check=True)
    assert isinstance(decode_answer(done.stdout), Done)
    assert done.stderr.decode().splitlines()[-1] == "[] True"
