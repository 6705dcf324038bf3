import functools
import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgefl.codec.weights import Precision
from edgefl.compress.budget import Candidate, Structure
from edgefl.errors import DataError, EdgeflError, FitError, FleetError, InputError, ModelError, ProfileError
from edgefl.identity.repository import listed
from edgefl.layout import nested_index
from edgefl.profile import Profile
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.pushed import COLUMNS, PushedVariant, table
from edgefl.server.variants import load_parent, load_variants
from edgefl.sources.parse import open_source
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import VersionRecord, get_version, latest_version, variants
from edgefl.wire import topics
from edgefl.wire.blocks import check_ref, file_ref
from edgefl.wire.messages import decode
from edgefl.wire.releases import Manifest

torch = pytest.importorskip("torch")

from edgefl.export.graphs import ExportedGraphs, export_graphs  # noqa: E402  needs torch
from edgefl.export.models import ModelSource  # noqa: E402
from edgefl.server.push import PushRequest, profiles_in_use, push  # noqa: E402

REQUEST = PushRequest(model="digits", source="mnist-2nn", batch=10)
NOW = 1_700_000_000.0


def board(name: str, kib: int, engine: str = "portable", reason: str = "") -> Profile:
    """A profile with this much room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=kib, memory_mb=2048,
        threads=1, link_kbps=1000, engine=engine, sources=("a data sheet",), reason=reason,
    )  # fmt: skip


@functools.cache
def exported_once(source: ModelSource, width: float, engine: str, batch: int) -> ExportedGraphs:
    """Graphs of a variant; most tests push the same one, and an export gives the same bytes each time."""
    return export_graphs(source, width, engine, batch)


@pytest.fixture(autouse=True)
def _exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefl.server.making.export_graphs", exported_once)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A new fleet."""
    return create_fleet(tmp_path / "fleet", name="test")


def newest(fleet: Fleet) -> VersionRecord:
    """The newest version of the model."""
    with closing(open_database(fleet.database)) as database:
        return latest_version(database, "digits")


def rows(fleet: Fleet) -> list[int]:
    """How many versions and variants the fleet has."""
    with closing(open_database(fleet.database)) as database:
        return [database.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in ("versions", "variants")]  # noqa: S608  constants


@pytest.mark.slow
def test_every_variant_fits_its_profile_and_is_what_its_manifest_says(fleet: Fleet) -> None:
    """Files on disk match the listed manifest to the byte, fit the budget with working state, and measure as reported."""
    boards = (board("large", 65536), board("middle", 1500), board("twin", 1500), board("small", 400))
    said: list[str] = []
    holdout = open_source("digits:?split=test").load()
    request = PushRequest(model="digits", source="mnist-2nn", batch=10, holdout=holdout)
    pushed = push(fleet, request, boards, now=NOW, on_progress=said.append)
    assert [v.profile for v in pushed] == ["large", "middle", "twin", "small"]
    assert pushed[0].variant == "w1-fp32"
    assert pushed[1].variant == pushed[2].variant
    assert sum(line.startswith("exporting") for line in said) == len({v.width for v in pushed})
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "digits", 1)
        records = {record.profile: record for record in variants(database, "digits", 1)}
        views = load_variants(database, version, blobs)
        known = listed(documents(database))
    parent = load_parent(blobs, version.weights)
    for outcome, profile in zip(pushed, boards, strict=True):
        manifest = records[profile.name].manifest
        payload = records[profile.name].encoded
        assert known[topics.target_path("digits", profile.name, 1)] == hashlib.sha256(payload).digest()
        assert decode(payload, Manifest) == manifest
        on_disk = [blobs.path(ref.sha256).stat().st_size for ref in manifest.files]
        assert sum(on_disk) == manifest.total_bytes == outcome.bytes
        assert outcome.footprint <= profile.storage_bytes == outcome.budget
        assert {ref.role for ref in manifest.files} == {"train", "eval", "infer", "golden", "weights"}
        for ref in manifest.files:
            assert check_ref(ref) == file_ref(ref.role, blobs.get(ref.sha256))
        assert manifest.round_key == online_signer(fleet).public_key
        assert (manifest.created, manifest.expires) == (int(NOW), int(NOW) + request.lifetime)
        view = views[outcome.variant]
        assert blobs.get(manifest.file("weights").sha256) == view.weights(parent)
        np.testing.assert_array_equal(nested_index(version.layout, manifest.layout), view.index)
        assert outcome.accuracy is not None
        assert 0.0 <= outcome.accuracy <= 1.0


@pytest.mark.slow
def test_versions_count_up_and_weights_come_from_the_file(fleet: Fleet, tmp_path: Path) -> None:
    """The second push is version 2, with exactly the operator's weights as the parent."""
    from safetensors.numpy import save_file

    boards = (board("large", 65536),)
    (first,) = push(fleet, REQUEST, boards, now=NOW)
    layout = newest(fleet).layout
    mine = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    save_file({name: value.copy() for name, value in layout.views(mine).items()}, tmp_path / "mine.safetensors")
    request = PushRequest(model="digits", source="mnist-2nn", batch=10, weights=tmp_path / "mine.safetensors")
    (second,) = push(fleet, request, boards, now=NOW)
    assert (first.version, second.version) == (1, 2)
    parent = load_parent(BlobStore(fleet.blobs), newest(fleet).weights)
    np.testing.assert_array_equal(parent, mine)
    other = PushRequest(model="other", source="mnist-2nn", batch=10)
    assert push(fleet, other, boards, now=NOW)[0].version == 1


@pytest.mark.slow
def test_engines_share_the_variant_but_not_the_graphs(fleet: Fleet) -> None:
    """Boards with different engines and equal width follow the same round orders, because layout and weights are equal."""
    pytest.importorskip("onnxruntime.training.artifacts")
    pushed = push(fleet, REQUEST, (board("pi", 65536), board("pc", 65536, "ort-training")), now=NOW)
    assert {v.variant for v in pushed} == {"w1-fp32"}
    with closing(open_database(fleet.database)) as database:
        one, two = (record.manifest for record in variants(database, "digits", 1))
    assert one.file("weights") == two.file("weights")
    assert one.layout == two.layout
    assert {ref.role for ref in one.files} == {"train", "eval", "infer", "golden", "weights", "optimizer", "checkpoint"}


@pytest.mark.slow
def test_real_graph_sizes_make_the_planner_step_down(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that the weights alone would meet and the exported files do not leads to the next variant that does fit."""
    from edgefl.server import making

    exported: list[float] = []
    real = making.export_graphs

    def counted(source: object, width: float, engine: str, batch: int) -> object:
        exported.append(width)
        return real(source, width, engine, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "export_graphs", counted)
    (wide,) = push(fleet, REQUEST, (board("large", 65536),), now=NOW)
    whole = Structure("w1", 1.0, newest(fleet).layout)
    without = Candidate(whole, Precision.INT8, graph_bytes=0).footprint
    assert wide.footprint > Candidate(whole, Precision.FP32, graph_bytes=0).footprint
    exported.clear()
    (narrow,) = push(fleet, REQUEST, (board("tight", without // 1024 + 1),), now=NOW)
    assert exported == [1.0, 0.75]
    assert narrow.width == 0.75
    assert narrow.footprint <= narrow.budget


def raising(error: EdgeflError) -> Callable[..., None]:
    """A function that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "boards", "error"),
    [
        ({}, (board("tiny", 20),), FitError),
        ({}, (board("old", 999, "none", "32-bit"),), ProfileError),
        ({}, (), ProfileError),
        ({}, (board("a", 65536), board("a", 65536)), ProfileError),
        ({"source": "no-such-model"}, (board("a", 65536),), ModelError),
        ({"model": "Not An Id"}, (board("a", 65536),), InputError),
        ({"weights": Path("/nonexistent")}, (board("a", 65536),), ModelError),
        ({"batch": 0}, (board("a", 65536),), ModelError),
        ({"batch": 70000}, (board("a", 65536),), ModelError),
    ],
)
def test_a_refused_push_leaves_no_row(
    change: dict[str, object], boards: tuple[Profile, ...], error: type[EdgeflError], fleet: Fleet
) -> None:
    """Whatever is wrong, it has its own error and the fleet is as it was."""
    fields = {"model": "digits", "source": "mnist-2nn", "batch": 10} | change
    with pytest.raises(error):
        push(fleet, PushRequest(**fields), boards, now=NOW)  # type: ignore[arg-type]
    assert rows(fleet) == [0, 0]


@pytest.mark.slow
def test_a_failure_after_export_leaves_no_row(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold-out data that does not fit, or a graph that does not compute what torch computes, refuses the whole push."""
    from edgefl.server import making

    wrong = open_source("digits:").load()
    wrong = type(wrong)(wrong.x[:, :27], wrong.y)
    request = PushRequest(model="digits", source="mnist-2nn", batch=10, holdout=wrong)
    with pytest.raises(DataError):
        push(fleet, request, (board("a", 65536),), now=NOW)
    monkeypatch.setattr(making, "verify_graphs", raising(ModelError("it does not compute")))
    with pytest.raises(ModelError, match="does not compute"):
        push(fleet, REQUEST, (board("a", 65536),), now=NOW)
    assert rows(fleet) == [0, 0]


def test_a_model_that_does_not_fit_names_a_profile_that_would(fleet: Fleet) -> None:
    """The error of a board that is too small ends with what to do: a shipped profile, or the tensor to shrink."""
    with pytest.raises(FitError) as caught:
        push(fleet, REQUEST, (board("tiny", 20),), now=NOW)
    assert "fc1.weight" in str(caught.value)
    assert "Use profile rpi-zero-2w" in str(caught.value)


def test_profiles_in_use_are_those_of_valid_devices(fleet: Fleet) -> None:
    """Distinct, sorted, without revoked devices; a fleet without devices says what to do."""
    with pytest.raises(FleetError, match="Provision"):
        profiles_in_use(fleet)
    with closing(open_database(fleet.database)) as database, database:
        add_devices(
            database,
            [
                Device("a", "rpi-5-8gb", "01", NOW),
                Device("b", "rpi-zero-2w", "02", NOW),
                Device("c", "rpi-5-8gb", "03", NOW),
                Device("d", "rpi-3b-plus", "04", NOW, NOW),
            ],
        )
    assert [profile.name for profile in profiles_in_use(fleet)] == ["rpi-5-8gb", "rpi-zero-2w"]
    with closing(open_database(fleet.database)) as database, database:
        add_devices(database, [Device("e", "gone", "05", NOW)])
    with pytest.raises(ProfileError, match="gone"):
        profiles_in_use(fleet)


def test_the_table_has_a_cell_for_each_column() -> None:
    """Numbers are grouped, what was not measured is a dash, and a time says on which machine it was measured."""
    common = {"model": "m", "version": 1, "engine": "portable", "variant": "w1-fp32", "width": 1.0, "precision": "fp32"}
    sizes = {"parameters": 199210, "bytes": 800123, "footprint": 2400000, "budget": 8388608}
    run = {"peak_bytes": 98 << 20, "memory_mb": 256, "step_ms": 2.0}
    one = PushedVariant(**common, **sizes, **run, profile="pi", accuracy=0.97125, board_step_ms=25.0)
    other = PushedVariant(**common, **sizes, **run, profile="pc", accuracy=None, board_step_ms=None)
    first, second = table((one, other))
    assert first[:-3] == ("pi", "portable", "w1-fp32", "199,210", "800,123", "2,400,000", "8,388,608", "97.12 %")
    assert first[-3:] == ("98/256", "2.00 here, 25.0 there", "-")
    assert second[-4:] == ("-", "98/256", "2.00 here", "-")
    assert len(first) == len(COLUMNS)
