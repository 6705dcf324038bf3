"""Int8 where it wins: graphs with the weights inside, kept if they are worth it, served until the weights have changed."""

from contextlib import closing
from dataclasses import replace

import msgspec
import numpy as np
import pytest

import make_graphs
import toyboard as toy

pytest.importorskip("torch")

from edgefl.engine.predictor import Predictor
from edgefl.errors import DataError, EngineError
from edgefl.examples import Examples
from edgefl.export.int8 import int8_graph
from edgefl.layout import Layout
from edgefl.profile import Profile
from edgefl.server import quantising
from edgefl.server.quantising import Quantiser, right
from toyoffice import MODEL

RNG = np.random.default_rng(0)


class Subject:
    """A golden variant, and examples that it answers all right."""

    def __init__(self, name):
        self.golden = golden = make_graphs.read(name)
        self.vector = np.frombuffer(golden.start, np.float32) * np.float32(2.0)
        self.infer = golden.files["infer"]
        self.exact = Predictor(self.infer, golden.layout.views(self.vector), classes=golden.classes, threads=1)
        self.x = RNG.standard_normal((400, *golden.input_shape)).astype(np.float32)
        self.examples = Examples(self.x, self.exact.logits(self.x).argmax(1).astype(np.int64))

    def quantiser(self, said=None, drop=0.05):
        """A quantiser that is told these examples."""
        say = (said if said is not None else []).append
        return Quantiser(self.examples, self.examples, self.golden.classes, drop=drop, on_progress=say)

    def graph(self, quantiser, room=1 << 20):
        """The graph that it keeps."""
        return quantiser.graph("w1-fp32", "portable", self.infer, self.golden.layout, self.vector, room)


@pytest.mark.parametrize("name", ["variant-dense", "variant-conv"])
def test_int8_computes_nearly_the_same_without_weights_from_outside(name):
    """Outputs are close for examples like those it was calibrated with, operators are allowed on a board, bytes repeat."""
    one = Subject(name)
    data = int8_graph(one.infer, one.golden.layout, one.vector, one.x[:200])
    assert data == int8_graph(one.infer, one.golden.layout, one.vector, one.x[:200])
    found = Predictor(data, {}, classes=one.golden.classes, threads=1).logits(one.x)
    exact = one.exact.logits(one.x)
    assert not np.array_equal(found, exact)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert right(found, one.examples) > 0.9
    with pytest.raises(EngineError, match="does not belong"):
        Predictor(data, one.golden.layout.views(one.vector), classes=one.golden.classes, threads=1)


def test_it_is_kept_only_if_it_is_worth_it(monkeypatch):
    """Too much accuracy lost, neither smaller nor faster, or no room: each is said, and none of them is an error."""
    one, said = Subject("variant-dense"), []
    monkeypatch.setattr(quantising, "_speedup", lambda *_: 2.0)
    data, worth = one.graph(one.quantiser())
    assert worth.length == len(data)
    assert worth.lost == pytest.approx(1.0 - worth.accuracy)
    assert one.graph(one.quantiser(said), room=len(data) - 1) is None
    assert "do not fit" in said[-1]
    monkeypatch.setattr(quantising, "right", lambda logits, _: 1.0 if np.array_equal(logits, one.exact.logits(one.x)) else 0.9)
    assert one.graph(one.quantiser(said)) is None
    assert "accuracy 1.0000 would become 0.9000" in said[-1]
    assert one.graph(one.quantiser(said, drop=0.11)) is not None
    monkeypatch.setattr(quantising, "_speedup", lambda *_: 0.5)
    assert len(data) > len(one.infer) + one.vector.nbytes, "so small a model is smaller in float32"
    assert one.graph(one.quantiser(said, drop=0.11)) is None
    assert "neither smaller nor faster" in said[-1]


def test_what_cannot_be_quantised_is_left_out(monkeypatch):
    """A push goes on without it, and says why; it is not tried again for the next profile."""
    one, said = Subject("variant-dense"), []

    def fail(*_):
        raise EngineError("no kernel")

    monkeypatch.setattr(quantising, "int8_graph", fail)
    quantiser = one.quantiser(said)
    assert one.graph(quantiser) is None
    assert one.graph(quantiser) is None
    assert said == ["quantising w1-fp32 to int8", "w1-fp32 gets no int8 graph: no kernel."]


def test_right_answers_are_counted_as_in_evaluation():
    """By class, by each of several yes and no; what is not finite is never good enough."""
    logits = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    x = np.zeros((2, 1), np.float32)
    assert right(logits, Examples(x, np.array([0, 0]))) == 0.5
    assert right(logits, Examples(x, np.array([[1, 0], [1, 1]], np.float32))) == 0.75
    assert np.isnan(right(logits * np.float32(np.nan), Examples(x, np.array([0, 0]))))


def bundled(directory):
    """A board whose directory an application can open as a bundle; its agent is not started."""
    for name in ("root.json", "ca.crt"):
        (directory / name).write_text("{}")
    return toy.Board(directory)


def test_a_device_serves_int8_until_it_adopts_the_weights_of_a_round(tmp_path):
    """Then float32 with the round's weights; a new version brings int8 again; an int8 graph that does not load is passed over."""
    import test_model as model

    board = bundled(tmp_path)
    golden = model.VARIANT
    graphs = {v: int8_graph(golden.files["infer"], golden.layout, model.vector_of(v), model.X) for v in (1, 2)}
    model.hold(board, 1, files={**golden.files, "serve": graphs[1]})
    served = model.Model(model.Shelf(model.Bundle(tmp_path, board.config), MODEL))
    found = served.predict(model.X)
    assert (found.quantised, found.version) == (True, 1)
    np.testing.assert_allclose(found.logits, model.logits_of(1), atol=0.1 * np.abs(model.logits_of(1)).max())
    model.adopt(board, 1, 3)
    found = served.predict(model.X)
    assert not found.quantised
    model.check(found, 1, 3)
    model.hold(board, 2, files={**golden.files, "serve": graphs[2]})
    assert served.predict(model.X).quantised
    model.hold(board, 3, files={**golden.files, "serve": b"no graph"})
    found = served.predict(model.X)
    assert not found.quantised
    model.check(found, 3)


@pytest.mark.parametrize(("engine", "quantised"), [("portable", False), ("inference", True)])
def test_personal_values_keep_a_board_that_trains_from_int8_and_no_other(engine, quantised, tmp_path):
    """The graph has the weights of the push inside; a board that only answers never has others."""
    import test_model as model

    board = bundled(tmp_path)
    board.config = msgspec.structs.replace(board.config, engine=engine)
    files = dict(model.VARIANT.files)
    graph = int8_graph(files["infer"], model.VARIANT.layout, model.vector_of(1), model.X)
    tensors = (msgspec.structs.replace(t, personal=place == 3) for place, t in enumerate(model.VARIANT.layout.tensors))
    model.hold(board, 1, layout=Layout(tuple(tensors)), files={**files, "serve": graph}, engine=engine)
    served = model.Model(model.Shelf(model.Bundle(tmp_path, board.config), MODEL))
    assert served.predict(model.X).quantised is quantised


@pytest.mark.slow
def test_a_push_lists_counts_and_reports_the_int8_graph(tmp_path):
    """It is a file of the manifest, within the footprint; a push that cannot judge it is refused."""
    from edgefl.server.founding import create_fleet
    from edgefl.server.push import PushRequest, push
    from edgefl.sources.parse import open_source
    from edgefl.store.database import open_database
    from edgefl.store.versions import get_variant

    fleet = create_fleet(tmp_path / "fleet", name="test")
    board = Profile(
        name="pi", title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=65536,
        memory_mb=2048, threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",),
    )  # fmt: skip
    examples = open_source("digits:?split=train").load()
    request = PushRequest(model="digits", source="mnist-2nn", batch=10, calibrate=examples, int8_drop=1.0)
    with pytest.raises(DataError, match="cannot be judged"):
        push(fleet, request, (board,), now=1.7e9)
    (pushed,) = push(fleet, replace(request, holdout=open_source("digits:?split=test").load()), (board,), now=1.7e9)
    with closing(open_database(fleet.database)) as database:
        manifest = get_variant(database, "digits", "pi", 1).manifest
    assert manifest.file("serve").length == pushed.int8_bytes < 4 * pushed.parameters / 3
    assert manifest.total_bytes == pushed.bytes
    assert pushed.footprint > pushed.bytes
    assert 0.0 <= pushed.int8_accuracy <= 1.0
    assert pushed.int8_speedup > 0.0
