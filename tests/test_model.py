"""Predictions on the board: the newest version that the agent holds, from any thread; no request is lost to a switch."""

import json
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import make_graphs
import toyboard as toy
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device import model as module
from edgefl.device.config import Bundle
from edgefl.device.model import Model
from edgefl.device.prediction import Prediction
from edgefl.device.served import Shelf
from edgefl.device.trust import seal
from edgefl.errors import DataError, InputError, PeerError, StoreError
from edgefl.identity.signing import Signer
from edgefl.layout import Layout
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState, TrialRecord
from edgefl.store.personal import keep_personal
from edgefl.wire.releases import Health
from toyoffice import MODEL

VARIANT = make_graphs.read("variant-dense")
START = np.frombuffer(VARIANT.start, dtype=np.float32)
X = np.random.default_rng(1).normal(size=(5, *VARIANT.input_shape)).astype(np.float32)
HEAVY = ["torch", "onnx", "onnxscript", "sklearn", "safetensors", "paho", "cryptography.x509"]


def vector_of(version, number=0):
    """Weights of which no two versions or rounds have the same."""
    return (START * (1.0 + 0.1 * version + 0.01 * number)).astype(np.float32)


def logits_of(version, number=0):
    """What these weights give for `X`, with numpy instead of the graph."""
    first, bias, second, last = (view for view in VARIANT.layout.views(vector_of(version, number)).values())
    hidden = np.maximum(X @ first.T + bias, 0.0)
    return hidden @ second.T + last


@pytest.fixture
def board(tmp_path):
    """A board with a real trainer process, and a bundle on disk for applications; its agent is not started."""
    board = toy.Board(tmp_path)
    np.savez(tmp_path / "data.npz", x=X, y=np.zeros(len(X), np.int64))
    (tmp_path / "ca.crt").write_text("of nobody")
    names = ("id", "profile", "engine", "threads", "memory_mb", "storage_kib", "host", "port", "fleet", "data")
    lines = [f"{name} = {json.dumps(getattr(board.config, name))}" for name in names]
    (tmp_path / "device.toml").write_text("\n".join(lines) + "\n")
    yield board
    if board.agent:
        board.agent._hands.close()


def announce(board, version, layout=VARIANT.layout, files=VARIANT.files, **options):
    """A version of the variant; its manifest and message."""
    weights = encode_weights(vector_of(version), layout, Precision.FP32)
    refs = tuple(board.office.offer(role, data) for role, data in {**files, "weights": weights}.items())
    return board.office.manifest(
        version, files=refs, layout=layout, input_shape=VARIANT.input_shape, classes=VARIANT.classes, batch=VARIANT.batch,
        recipe=VARIANT.recipe, health=Health(), **options,
    )  # fmt: skip


def hold(board, version, **options):
    """Put a version into the board's state as its agent would, and make it the active one."""
    manifest, payload = announce(board, version, announce=False, **options)
    put(board, manifest.files)
    disk = ModelState(board.folder)
    board.folder.parent.mkdir(parents=True, exist_ok=True)
    disk.prepare(seal(payload, board.config), TrialRecord(version, 0, 1), ())
    disk.activate()
    return manifest


def put(board, refs):
    """Have files in the store."""
    for ref in refs:
        BlobStore(board.state / "blobs").put(board.office.files[ref.sha256][1])


def adopt(board, version, number):
    """Put a round's weights into the board's state as its agent would."""
    vector = vector_of(version, number)
    order, payload = board.office.order(number, version, None, vector, layout=VARIANT.layout, announce=False)
    put(board, [order.weights])
    ModelState(board.folder).adopt(payload)
    return order


def opened(board):
    """The model, as an application opens it."""
    return Model.open(board.root, MODEL)


def check(found, version, number=0):
    """Every row of an answer comes from this version and round."""
    assert (found.version, found.round) == (version, number)
    np.testing.assert_allclose(found.logits, logits_of(version, number), rtol=1e-4, atol=1e-5)


def test_the_newest_weights_of_the_active_version_answer(board):
    """A version's own weights, then those of a round, then another version's; and a revert leads back."""
    hold(board, 1)
    model = opened(board)
    assert model.input_shape == VARIANT.input_shape
    check(model.predict(X), 1)
    adopt(board, 1, 4)
    check(model.predict(X), 1, 4)
    hold(board, 2)
    check(model.predict(X), 2)
    check(opened(board).predict(X), 2)
    ModelState(board.folder).revert(())
    check(model.predict(X), 1, 4)
    assert model.version == 1


def test_nothing_on_disk_is_needed_once_it_is_loaded(board):
    """The agent may delete every file of a version in use; a new application then gets an error that says what is missing."""
    hold(board, 1)
    model = opened(board)
    BlobStore(board.state / "blobs").keep_only(set())
    check(model.predict(X), 1)
    with pytest.raises(StoreError, match="not in the store"):
        opened(board)
    hold(board, 2)
    check(model.predict(X), 2)


def test_a_request_ends_on_the_session_it_began_with(board, monkeypatch):
    """While it runs, another version is activated, the old files go, and other requests use the new version."""
    hold(board, 1)
    model, begun, go, answers = opened(board), threading.Event(), threading.Event(), []
    real = module.Predictor.logits

    def slow(self, x):
        if len(x) == 1:
            begun.set()
            assert go.wait(30.0)
        return real(self, x)

    monkeypatch.setattr(module.Predictor, "logits", slow)
    thread = threading.Thread(target=lambda: answers.append(model.predict(X[:1])))
    thread.start()
    assert begun.wait(30.0)
    manifest = hold(board, 2)
    BlobStore(board.state / "blobs").keep_only({ref.sha256 for ref in manifest.files})
    check(model.predict(X), 2)
    go.set()
    thread.join(30.0)
    assert answers[0].version == 1
    np.testing.assert_allclose(answers[0].logits, logits_of(1)[:1], rtol=1e-4, atol=1e-5)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_use(board, monkeypatch, caplog):
    """A damaged file is never used; the log says so once, and when the agent has fetched it again the version is used."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    hold(board, 1)
    model = opened(board)
    manifest = hold(board, 2)
    path = BlobStore(board.state / "blobs").path(manifest.file("weights").sha256)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x00")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            check(model.predict(X), 1)
    assert sum("cannot be served yet" in record.message for record in caplog.records) == 1
    path.write_bytes(good)
    time.sleep(0.25)
    check(model.predict(X), 2)


def test_what_the_store_does_not_vouch_for_is_not_believed(board):
    """A flipped bit in the manifest, another fleet's seal, and a forged order are not followed."""
    hold(board, 1)
    order = adopt(board, 1, 3)
    forged, payload = board.office.order(4, 1, None, vector_of(1, 4), signer=Signer.generate(), layout=VARIANT.layout)
    put(board, [forged.weights])
    ModelState(board.folder).adopt(payload)
    check(opened(board).predict(X), 1)
    adopt(board, 1, 3)
    BlobStore(board.state / "blobs").path(order.weights.sha256).write_bytes(b"damaged")
    check(opened(board).predict(X), 1)
    current = board.folder / "current"
    sealed = bytearray(current.read_bytes())
    sealed[-1] ^= 1
    current.write_bytes(bytes(sealed))
    with pytest.raises(PeerError):
        opened(board)


def test_the_devices_own_values_are_used(board):
    """Personal tensors have the values that the last training has left here, and new ones are seen."""
    tensors = tuple(toy.msgspec.structs.replace(t, personal=place == 3) for place, t in enumerate(VARIANT.layout.tensors))
    layout = Layout(tensors)
    hold(board, 1, layout=layout)
    model = opened(board)
    check(model.predict(X), 1)
    own = vector_of(1)
    own[layout.personal()] += 7.0
    keep_personal(ModelState(board.folder).personal, 1, layout, own)
    np.testing.assert_allclose(model.predict(X).logits, logits_of(1) + 7.0, rtol=1e-4, atol=1e-4)


def test_probabilities_follow_the_loss():
    """Softmax sums to one and stays finite, a sigmoid is one for each output, a regression is left as it is."""
    logits = np.array([[1000.0, 0.0, -1000.0], [1.0, 1.0, 1.0]], np.float32)
    soft = Prediction(logits, "cross-entropy", 1, 0, quantised=False)
    np.testing.assert_allclose(soft.probabilities, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6)
    assert soft.classes.tolist() == [0, 0]
    yes = Prediction(np.array([[0.0], [3.0]], np.float32), "bce", 1, 0, quantised=False)
    np.testing.assert_allclose(yes.probabilities, [[0.5], [1 / (1 + np.exp(-3.0))]], rtol=1e-6)
    assert yes.classes.tolist() == [0, 1]
    assert Prediction(logits, "mse", 1, 0, quantised=False).probabilities is logits


def test_wrong_inputs_and_names_are_named(board):
    """Each has an error of its own, and the model goes on."""
    hold(board, 1)
    model = opened(board)
    for wrong in (X[:, :-1], np.full_like(X, np.nan), X[:0], np.array(["a"]), 3.0):
        with pytest.raises(DataError):
            model.predict(wrong)
    check(model.predict(X.reshape(len(X), 1, -1)), 1)
    with pytest.raises(StoreError, match="'nothing'") as raised:
        Shelf(Bundle(board.root, board.config), "nothing")
    assert raised.value.expected == f"one of {MODEL}"
    with pytest.raises(InputError):
        Shelf(Bundle(board.root, board.config), "../toy")


def command(board, *arguments, stdin=""):
    """`edgefl device predict`, as a process."""
    line = [sys.executable, "-m", "edgefl", "device", "predict", "--bundle", str(board.root), "--model", MODEL, *arguments]
    return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_prints_a_line_for_each_example(board):
    """From a source and from standard input come the same classes; a line that is no example ends it with exit code 2."""
    hold(board, 1)
    adopt(board, 1, 2)
    wanted = logits_of(1, 2).argmax(1).tolist()
    done = command(board, f"npz:{board.root / 'data.npz'}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["class"] for line in found] == wanted, done.stderr
    assert {(line["version"], line["round"]) for line in found} == {(1, 2)}
    assert all(abs(sum(line["probabilities"]) - 1.0) < 1e-4 for line in found)
    lines = "".join(json.dumps(x.tolist()) + "\n" for x in X[:2])
    done = command(board, "-", stdin=f"{lines}\n[1, [2]]\n")
    assert [json.loads(line)["class"] for line in done.stdout.splitlines()] == wanted[:2]
    assert done.returncode == 2
    assert "line 4 of standard input" in done.stderr
    assert "Traceback" not in done.stderr


APPLICATION = f"""
import json, sys, threading
import numpy as np
from edgefl.device.model import Model

model, x = Model.open(sys.argv[1], sys.argv[2]), np.load(sys.argv[3])["x"]
ending, said = threading.Event(), []

def work():
    mine = {{"answers": 0, "seen": [], "errors": [], "logits": []}}
    said.append(mine)
    while not ending.is_set():
        try:
            found = model.predict(x)
        except Exception as error:
            mine["errors"].append(repr(error))
            continue
        mine["answers"] += 1
        if [found.version, found.round] not in mine["seen"][-1:]:
            mine["seen"].append([found.version, found.round])
            mine["logits"].append(found.logits.tolist())
        elif found.logits.tolist() != mine["logits"][-1]:
            mine["errors"].append("the same version gives something else")

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.read()
ending.set()
for thread in threads:
    thread.join()
print(json.dumps({{"said": said, "heavy": [name for name in {HEAVY} if name in sys.modules]}}))
"""


def run(board, until, seconds=60.0):
    """Let everybody work in real time until something has happened."""
    deadline = time.monotonic() + seconds
    while not until():
        board.turn(0.01)
        time.sleep(0.005)
        assert time.monotonic() < deadline, (board.office.steps(), board.office.errors()[-3:])


def linger(board):
    """Let half a second pass."""
    end = time.monotonic() + 0.5
    run(board, lambda: time.monotonic() > end)


@pytest.mark.slow
def test_an_application_predicts_while_the_agent_activates_versions(board):
    """Two threads of another process meet installations, a round and a rollback: no error, nothing mixed, never backwards."""
    board.start()
    announce(board, 1)
    run(board, lambda: board.active() == 1)
    arguments = [str(board.root), MODEL, str(board.root / "data.npz")]
    process = subprocess.Popen(
        [sys.executable, "-c", APPLICATION, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process as application:
        assert application.stdout.readline() == "ready\n"
        for version in (2, 3):
            announce(board, version)
            run(board, lambda wanted=version: board.active() == wanted)
            linger(board)
        board.office.order(5, 3, None, vector_of(3, 5), layout=VARIANT.layout)
        run(board, lambda: "adopted" in board.office.steps())
        linger(board)
        board.office.assign(2)
        run(board, lambda: board.active() == 2)
        linger(board)
        found = json.loads(application.communicate("")[0])
    assert found["heavy"] == []
    for thread in found["said"]:
        assert thread["errors"] == []
        assert thread["answers"] > 20
        assert thread["seen"] == [[1, 0], [2, 0], [3, 0], [3, 5], [2, 0]]
        for (version, number), logits in zip(thread["seen"], thread["logits"], strict=True):
            np.testing.assert_allclose(logits, logits_of(version, number), rtol=1e-4, atol=1e-5)
