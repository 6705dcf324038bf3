"""The board's doctor: what it finds on a device, healthy or not, and what it says to people and to programs."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device import examine
from edgefl.device.config import load_bundle
from edgefl.device.diagnosis import Check
from edgefl.device.trust import seal
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.blobs import BlobStore
from edgefl.store.fleet import Fleet
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import encode
from edgefl.wire.releases import Fit, Manifest

ROOT = Path(__file__).parent.parent
PROFILE = "rpi-zero-2w"
YEAR = 365 * 86400.0


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet whose broker's port is free until a test listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    return create_fleet(tmp_path / "fleet", name="test", host="127.0.0.1", port=port)


@pytest.fixture
def board(fleet: Fleet, tmp_path: Path) -> Path:
    """A provisioned device with twelve examples and one stored model."""
    golden = make.read("variant-dense")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((12, *golden.input_shape)), y=np.arange(12) % golden.classes)
    (made,) = provision(fleet, ["cam-01"], PROFILE, tmp_path / "bundles", data=f"npz:{tmp_path / 'data.npz'}")
    store(made.bundle, "tiny", {})
    return made.bundle


def store(bundle: Path, model: str, replaced: dict[str, bytes]) -> None:
    """Put the golden variant into a device's state, some of its files replaced."""
    golden = make.read("variant-dense")
    vector = np.frombuffer(golden.start, dtype=np.float32)
    files = {**golden.files, "weights": encode_weights(vector, golden.layout, Precision.FP32), **replaced}
    blobs = BlobStore(bundle / "state" / "blobs")
    for data in files.values():
        blobs.put(data)
    manifest = Manifest(
        model=model,
        version=1,
        profile=PROFILE,
        variant="w1-fp32",
        engine=golden.engine,
        layout=golden.layout,
        input_shape=golden.input_shape,
        classes=golden.classes,
        batch=golden.batch,
        files=tuple(file_ref(role, data) for role, data in files.items()),
        round_key=bytes(32),
        created=0,
        expires=2_000_000_000,
        recipe=golden.recipe,
        fit=Fit(step_ms=0.01),
    )
    folder = bundle / "state" / "models" / model
    folder.mkdir(parents=True)
    (folder / "current").write_bytes(seal(encode(manifest), load_bundle(bundle).config))


@contextmanager
def listening(fleet: Fleet, clients: Path, then: Callable[[ssl.SSLSocket], object]) -> Iterator[None]:
    """A TLS listener with the broker's certificate that believes the clients of a CA and does something with each connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.broker_certificate, fleet.broker_key)
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED
    server = socket.create_server(("127.0.0.1", fleet.settings.port))

    def serve() -> None:
        with suppress(OSError):  # a refused handshake, or the end of the test
            while True:
                raw, _ = server.accept()
                with suppress(OSError), context.wrap_socket(raw, server_side=True) as secured:
                    then(secured)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def wait_for_connect(secured: ssl.SSLSocket) -> None:
    """What a broker does after the handshake: it waits for the client's first packet."""
    secured.settimeout(10)
    secured.recv(1)


def by_name(path: Path) -> dict[str, Check]:
    """The checks of a board by name."""
    return {check.name: check for check in examine.examine(path).checks}


def test_a_healthy_device_can_take_part(fleet: Fleet, board: Path) -> None:
    """All of its checks pass (this machine may be another board's, and hot), and its model was really run."""
    with listening(fleet, fleet.root_certificate, wait_for_connect):
        found = examine.examine(board)
    assert [check for check in found.checks if check.state == "failed"] == []
    assert found.able
    assert (found.device, found.profile) == ("cam-01", PROFILE)
    (model,) = found.models
    assert (model.model, model.version, model.variant, model.engine) == ("tiny", 1, "w1-fp32", "portable")
    assert 0.0 < model.step_ms < 1000.0
    assert model.slowdown == pytest.approx(model.step_ms / 0.01, rel=0.1)
    assert 20.0 < model.peak_rss_mb < 250.0
    assert [check.name for check in found.checks] == [
        "machine", "engine", "clock", "service", "certificate", "authority", "storage", "temperature", "data", "broker",
        "model tiny",
    ]  # fmt: skip


def test_looking_changes_nothing(board: Path) -> None:
    """No file is written or touched, and a state directory that is not there is not made."""
    before = {path: path.stat().st_mtime_ns for path in board.rglob("*")}
    examine.examine(board)
    assert {path: path.stat().st_mtime_ns for path in board.rglob("*")} == before
    (board / "state").rename(board / "elsewhere")
    found = examine.examine(board)
    assert not (board / "state").exists()
    assert found.models == ()


def test_a_broker_that_is_not_there_is_named(board: Path) -> None:
    """Nobody listens at the address in device.toml."""
    check = by_name(board)["broker"]
    assert (check.state, check.remedy) == ("failed", "Start the broker, or check host and port")
    assert "connection refused" in check.text


def test_a_broker_that_refuses_the_certificate_is_named(fleet: Fleet, board: Path, tmp_path: Path) -> None:
    """The handshake ends on our side before the broker's judgement arrives: the doctor waits for it."""
    other = create_fleet(tmp_path / "other", name="other", host="127.0.0.1", port=1)
    with listening(fleet, other.root_certificate, wait_for_connect):
        check = by_name(board)["broker"]
    assert check.state == "failed"
    assert "the broker refuses our certificate" in check.text


def test_a_broker_of_another_fleet_is_named(fleet: Fleet, board: Path, tmp_path: Path) -> None:
    """Its certificate does not hold before our CA."""
    other = create_fleet(tmp_path / "other", name="other", host="127.0.0.1", port=fleet.settings.port)
    with listening(other, other.root_certificate, wait_for_connect):
        check = by_name(board)["broker"]
    assert check.state == "failed"
    assert "the broker's certificate does not hold" in check.text


def test_a_broker_that_hangs_up_is_named(fleet: Fleet, board: Path) -> None:
    """The connection ends although nobody has refused anything."""
    with listening(fleet, fleet.root_certificate, lambda _: None):
        assert "closed the connection" in by_name(board)["broker"].text


def test_data_that_does_not_fit_the_model_is_named(board: Path, tmp_path: Path) -> None:
    """It can be read, but this model cannot be trained with it."""
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 5), np.float32), y=np.zeros(4, np.int64))
    checks = by_name(board)
    assert checks["data"].state == "ok"
    assert checks["model tiny"].state == "failed"
    assert "the data does not fit the model" in checks["model tiny"].text


def test_missing_data_is_named_and_the_model_is_still_run(board: Path, tmp_path: Path) -> None:
    """What the model needs does not depend on the data."""
    (tmp_path / "data.npz").unlink()
    checks = by_name(board)
    assert checks["data"].state == "failed"
    assert checks["model tiny"].state == "ok"


def test_a_damaged_file_of_a_stored_version_is_named(board: Path) -> None:
    """A flipped bit on the card."""
    golden = make.read("variant-dense")
    weights = encode_weights(np.frombuffer(golden.start, dtype=np.float32), golden.layout, Precision.FP32)
    path = BlobStore(board / "state" / "blobs").path(file_ref("weights", weights).sha256)
    path.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    check = by_name(board)["model tiny"]
    assert check.state == "failed"
    assert "damaged" in check.text


def test_a_graph_that_does_not_run_is_named(board: Path) -> None:
    """It is signed and whole, but this machine's runtime refuses it."""
    store(board, "other", {"train": b"no graph"})
    checks = by_name(board)
    assert checks["model tiny"].state == "ok"
    assert checks["model other"].state == "failed"
    assert "graph" in checks["model other"].text


def test_state_that_is_not_believed_is_a_warning(board: Path) -> None:
    """The agent fetches the version again by itself."""
    (board / "state" / "models" / "tiny" / "current").write_bytes(b"nonsense")
    check = by_name(board)["model tiny"]
    assert check.state == "warning"
    assert "not believed" in check.text


def test_a_wrong_clock_is_named(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a real-time clock that wakes up in 1970 can believe nothing."""
    monkeypatch.setattr(time, "time", lambda: 12345.0)
    checks = by_name(board)
    assert [name for name, check in checks.items() if check.state == "failed"] == ["clock", "certificate", "broker"]


def test_an_engine_that_this_machine_lacks_is_named(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile asks for native training on a machine with stock ONNX Runtime."""
    text = (board / "device.toml").read_text().replace('engine = "portable"', 'engine = "ort-training"')
    (board / "device.toml").write_text(text)
    monkeypatch.setattr(examine, "available_engines", lambda: ("portable",))
    assert by_name(board)["engine"].state == "failed"


@pytest.mark.parametrize("name", ["device.toml", "device.crt", "device.key", "ca.crt"])
def test_an_incomplete_bundle_is_named(board: Path, name: str) -> None:
    """Whichever of its files is missing."""
    (board / name).unlink()
    found = examine.examine(board)
    assert not found.able
    assert [(check.name, check.state) for check in found.checks] == [("bundle", "failed")]
    assert name in found.checks[0].text
    assert found.checks[0].remedy


def test_a_certificate_that_is_none_is_named(board: Path) -> None:
    """A file of that name is there, but not with a certificate in it."""
    (board / "device.crt").write_text("empty")
    (check,) = examine.examine(board).checks
    assert check.name == "bundle"
    assert "certificate cannot be read" in check.text


def test_a_certificate_knows_whose_it_is_and_until_when(board: Path) -> None:
    """As the authority made it: ten years, from a day ago."""
    validity = examine.validity_of(load_bundle(board).certificate.read_bytes())
    assert validity.name == "cam-01"
    assert validity.begins < time.time() - 86000
    assert abs(validity.ends - time.time() - 10 * YEAR) < 86400


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`edgefl device doctor` as a person calls it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "edgefl", "device", "doctor", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def test_json_and_exit_code_say_the_same(fleet: Fleet, board: Path) -> None:
    """Zero for a device that can take part and four for one that cannot; the shape is stable."""
    with listening(fleet, fleet.root_certificate, wait_for_connect):
        able = command(board, "--json")
    unable = command(board, "--json")
    assert (able.returncode, unable.returncode) == (0, 4)
    assert able.stderr == unable.stderr == ""
    for done, expected in ((able, True), (unable, False)):
        found = json.loads(done.stdout)
        assert found["able"] is expected
        assert set(found) == {"device", "profile", "able", "trains", "versions", "models", "checks"}
        assert set(found["versions"]) == {"edgefl", "python", "numpy", "onnxruntime", "kernel", "architecture"}
        assert all(set(check) == {"name", "state", "text", "remedy"} for check in found["checks"])
        (model,) = found["models"]
        assert set(model) == {"model", "version", "variant", "engine", "step_ms", "peak_rss_mb", "slowdown"}


def test_people_are_told_what_to_do(board: Path) -> None:
    """One line for each check, with its remedy, and the verdict last."""
    lines = command(board).stdout.splitlines()
    assert lines[0].startswith("device cam-01: edgefl ")
    assert any(
        line.startswith("failed   broker ") and line.endswith("Start the broker, or check host and port.") for line in lines
    )
    assert lines[-1] == "This device cannot take part."


def test_a_directory_that_is_no_bundle_has_the_same_exit_code(tmp_path: Path) -> None:
    """It says so in words, as a failed check."""
    done = command(tmp_path)
    assert done.returncode == 4
    assert "failed   bundle       there is no device.toml at" in done.stdout
