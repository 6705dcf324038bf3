import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefl.errors import DataError
from edgefl.sources.parse import open_source
from edgefl.sources.split import dirichlet_split


def idx_bytes(array: np.ndarray, code: int = 8) -> bytes:
    """An array as an idx file."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pictures(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Small uint8 images and labels."""
    return np.arange(count * 20, dtype=np.uint8).reshape(count, 4, 5), (np.arange(count) % 3).astype(np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A directory with MNIST's four names; training plain, test gzip."""
    for prefix, count in (("train", 6), ("t10k", 4)):
        x, y = pictures(count)
        for name, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            if prefix == "train":
                (tmp_path / name).write_bytes(idx_bytes(array))
            else:
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return tmp_path


def test_idx_directory_and_splits(mnist: Path) -> None:
    """A directory with MNIST's four files is two splits, plain or gzip, scaled to [0, 1]."""
    train, test = open_source(f"idx:{mnist}").load(), open_source(f"idx:{mnist}?split=test").load()
    assert (len(train), len(test)) == (6, 4)
    np.testing.assert_array_equal(train.x, pictures()[0].astype(np.float32) / 255)
    assert train.x.dtype == np.float32
    assert test.y.tolist() == [0, 1, 2, 0]


def test_idx_labels_are_found_by_name(mnist: Path) -> None:
    """The labels file follows from the images file, also across plain and gzip; or it is named."""
    images = mnist / "t10k-images-idx3-ubyte.gz"
    by_name = open_source(f"idx:{images}").load()
    named = open_source(f"idx:{images},{mnist / 't10k-labels-idx1-ubyte.gz'}").load()
    np.testing.assert_array_equal(by_name.y, named.y)
    other = images.rename(mnist / "pixels.gz")
    with pytest.raises(DataError, match="Name it"):
        open_source(f"idx:{other}").load()


def test_idx_float_values_are_not_scaled(tmp_path: Path) -> None:
    """Only uint8 is divided by 255; big-endian numbers of other types are read as they are."""
    (tmp_path / "images").write_bytes(idx_bytes(np.array([[1.5, -2.0]], dtype=">f4"), 0x0D))
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([1], dtype=">i4"), 0x0C))
    examples = open_source(f"idx:{tmp_path / 'images'}").load()
    assert examples.x.tolist() == [[1.5, -2.0]]
    assert examples.y.tolist() == [1]


def broken_idx() -> dict[str, bytes]:
    """Files with one fault each."""
    good = idx_bytes(pictures()[0])
    return {
        "empty": b"",
        "three bytes": b"\0\0\x08",
        "wrong magic": b"\1" + good[1:],
        "unknown type": b"\0\0\x07" + good[3:],
        "no axes": b"\0\0\x08\0",
        "too many axes": b"\0\0\x08\xff" + good[4:],
        "header cut": good[:9],
        "truncated": good[:-1],
        "junk": good + b"x",
        "absurd": b"\0\0\x08\x03" + b"\xff" * 12 + b"x" * 100,
        "large": b"\0\0\x08\x03" + struct.pack(">3I", 1 << 13, 1 << 7, 1 << 7) + b"x" * 100,
        "no examples": idx_bytes(np.zeros((0, 4, 5), dtype=np.uint8)),
        "one example less": idx_bytes(pictures(5)[0]),
    }


@pytest.mark.parametrize("fault", sorted(broken_idx()))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_idx_files_are_worded_and_bounded(fault: str, suffix: str, mnist: Path) -> None:
    """Each fault is a DataError, and a lying header allocates nothing."""
    data = broken_idx()[fault]
    path = mnist / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    tracemalloc.start()
    with pytest.raises(DataError):
        open_source(f"idx:{path}").load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_damaged_gzip_is_worded(mnist: Path) -> None:
    """A gzip that is cut, whose bits flipped, or that is none: DataError with a remedy."""
    path = mnist / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    for data in (good[:-9], good[: len(good) // 2], good[:20] + b"\xff\xff\xff" + good[23:], b"no gzip", b""):
        path.write_bytes(data)
        with pytest.raises(DataError):
            open_source(f"idx:{mnist}?split=test").load()


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    """100 MB of zeros behind a header of 20 values are not read."""
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_bytes(pictures(1)[0]) + bytes(100_000_000), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="found more"):
        open_source(f"idx:{tmp_path / 'images.gz'},{tmp_path / 'labels'}").load()
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_missing_files_say_so(tmp_path: Path) -> None:
    """A missing file, a directory without the files, and a directory as a file are DataErrors that name it."""
    for text in (f"idx:{tmp_path / 'nothing-images'}", f"idx:{tmp_path}", f"npz:{tmp_path / 'nothing.npz'}"):
        with pytest.raises(DataError, match="does not exist"):
            open_source(text).load()
    with pytest.raises(DataError):
        open_source(f"npz:{tmp_path}").load()


def npz(path: Path, **arrays: object) -> str:
    """Write an archive; the source that names it."""
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_whole_and_by_client(tmp_path: Path) -> None:
    """Both arrays of an archive, or the rows of one client; labels may be a column; integers are not scaled, uint8 is."""
    x, y = pictures()
    text = npz(tmp_path / "a.npz", x=x, y=y.reshape(-1, 1), client=np.array([3, 3, 7, 7, 7, 9]))
    assert len(open_source(text).load()) == 6
    one = open_source(f"{text}?client=7").load()
    np.testing.assert_array_equal(one.x, x[2:5].astype(np.float32) / 255)
    assert one.y.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match="one of 3, 7, 9"):
        open_source(f"{text}?client=4").load()
    assert (
        open_source(npz(tmp_path / "b.npz", x=np.full((2, 3), 300, dtype=np.int16), y=np.zeros(2, dtype=int))).load().x[0, 0]
        == 300
    )


X, Y = np.ones((3, 2)), np.zeros(3, dtype=int)


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": Y},
        {"x": X, "y": np.array([0, 1])},
        {"x": X, "y": np.array([0.0, 1.0, 2.0])},
        {"x": X, "y": np.array([0, 1, -1])},
        {"x": X, "y": np.array([0, None, "a"], dtype=object)},
        {"x": np.array([[1, None]] * 3, dtype=object), "y": Y},
        {"x": np.array([["a", "b"]] * 3), "y": Y},
        {"x": X * np.nan, "y": Y},
        {"x": X * 1e300, "y": Y},
        {"x": X[:, 0], "y": Y},
        {"x": X[:0], "y": Y[:0]},
        {"x": X.astype(complex), "y": Y},
        {"x": np.array(1.0), "y": Y},
    ],
)
def test_unusable_npz_arrays_are_worded(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Missing keys, object arrays, text, NaN, overflow, mismatched lengths, wrong types: a DataError each."""
    with pytest.raises(DataError):
        open_source(npz(tmp_path / "a.npz", **arrays)).load()


def test_npz_without_labels_or_with_targets(tmp_path: Path) -> None:
    """An archive without `y` gives unlabelled examples; floats in two axes are targets; both by client, too."""
    client, targets = np.array([1, 2, 2]), np.arange(6.0).reshape(3, 2)
    bare = npz(tmp_path / "a.npz", x=X, client=client)
    assert open_source(bare).load().y.shape == (3, 0)
    assert open_source(f"{bare}?client=2").load().y.shape == (2, 0)
    aimed = open_source(f"{npz(tmp_path / 'b.npz', x=X, y=targets, client=client)}?client=2").load()
    assert aimed.y.dtype == np.float32
    assert aimed.y.tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_npz_client_array_must_fit(tmp_path: Path) -> None:
    """No `client`, or one that does not fit, is an error only if a client is asked for."""
    for extra in ({}, {"client": np.array([1, 2])}, {"client": np.array([1.0, 2.0, 3.0])}):
        text = npz(tmp_path / "a.npz", x=X, y=Y, **extra)
        assert len(open_source(text).load()) == 3
        with pytest.raises(DataError):
            open_source(f"{text}?client=1").load()


def test_an_npz_that_lies_about_its_size_takes_no_memory(tmp_path: Path) -> None:
    """An array header that declares terabytes, or more than the archive holds, allocates nothing."""
    for shape in ("(1000000, 1000000)", "(100000, 100)", "(-1, 3)", "(10,"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        header += b" " * (117 - len(header)) + b"\n"
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(100))
        tracemalloc.start()
        with pytest.raises(DataError):
            open_source(f"npz:{path}").load()
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archives_never_surprise(tmp_path: Path, data: st.DataObject) -> None:
    """Any damage to an archive's bytes gives examples or a DataError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, y=Y)
    good = bytearray(buffer.getvalue())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=6)):
        good[place] = value
    cut = data.draw(st.integers(0, len(good)))
    (tmp_path / "a.npz").write_bytes(bytes(good[: cut or None]))
    try:
        open_source(f"npz:{tmp_path / 'a.npz'}").load()
    except DataError as error:
        assert str(error)  # noqa: PT017  both outcomes are allowed


def test_digits_are_enlarged_and_split() -> None:
    """Train and test are disjoint, deterministic, hold all classes, and have MNIST's shape and range."""
    pytest.importorskip("sklearn")
    train, test = open_source("digits:").load(), open_source("digits:?split=test").load()
    assert len(train) + len(test) == 1797
    assert train.x.shape[1:] == (28, 28)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
    assert not train.x[:, :2].any()
    assert (train.x[0, 2:5, 8:11] == train.x[0, 2, 8]).all()
    assert min(np.bincount(test.y)) >= 34
    np.testing.assert_array_equal(open_source("digits:?split=train").load().y, train.y)


def test_digits_are_those_of_the_library_which_is_not_loaded() -> None:
    """Every label and every grey level is what scikit-learn gives; reading them loads nothing of it."""
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = open_source("digits:").load(), open_source("digits:?split=test").load()
    bunch = datasets.load_digits()
    assert np.bincount(np.concatenate([train.y, test.y])).tolist() == np.bincount(bunch.target).tolist()
    grey = np.concatenate([train.x, test.x])[:, 2:26:3, 2:26:3] * 16.0
    assert sorted(map(bytes, grey.astype(np.uint8))) == sorted(map(bytes, bunch.images.astype(np.uint8)))
    code = "import sys; from edgefl.sources.parse import open_source as o; o('digits:').load(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,x\n"), None])
def test_a_damaged_installation_of_the_digits_is_an_error_that_says_so(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library without the file, or with another one, is named with what to do."""
    place = tmp_path / "datasets" / "data"
    place.mkdir(parents=True)
    if content is not None:
        (place / "digits.csv.gz").write_bytes(content)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr("edgefl.sources.digits.find_spec", lambda _: spec)
    with pytest.raises(DataError, match=r"digits") as caught:
        open_source("digits:").load()
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        *("", "idx", "idx:", "npz:", "csv:file", "digits:file", "digits:?split=all", "digits:?spilt=test", "idx:a\0b"),
        *("npz:a?client=x", "npz:a?client=-1", "npz:a?client=1&client=2", "npz:a?client", "npz:a?split=test"),
        "npz:a?client=" + "9" * 30,
    ],
)
def test_unreadable_sources_are_refused_at_once(text: str) -> None:
    """A wrong source is refused when it is parsed, before any file is touched."""
    with pytest.raises(DataError):
        open_source(text)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
def test_a_dirichlet_split_is_a_partition(alpha: float) -> None:
    """Every row belongs to exactly one client, every client has the minimum, and the seed decides."""
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    parts = dirichlet_split(labels, 50, alpha=alpha, seed=3, minimum=5)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    assert min(map(len, parts)) >= 5
    for one, two in zip(parts, dirichlet_split(labels, 50, alpha=alpha, seed=3, minimum=5), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_small_alpha_makes_clients_differ() -> None:
    """With alpha 0.1 a client's commonest class dominates; with 100 it hardly stands out."""
    labels = np.random.default_rng(0).integers(0, 10, 5000)

    def dominance(alpha: float) -> float:
        parts = dirichlet_split(labels, 20, alpha=alpha, seed=0, minimum=10)
        return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in parts]))

    assert dominance(0.1) > 0.5
    assert dominance(100.0) < 0.2


@pytest.mark.parametrize(
    ("clients", "alpha", "minimum"), [(0, 1.0, 1), (3, 0.0, 1), (3, float("nan"), 1), (3, 1.0, -1), (30, 1.0, 4)]
)
def test_impossible_splits_are_refused(clients: int, alpha: float, minimum: int) -> None:
    """Too few examples, or a parameter out of range."""
    with pytest.raises(DataError):
        dirichlet_split(np.zeros(100, dtype=np.int64), clients, alpha=alpha, seed=0, minimum=minimum)


@pytest.mark.data
@pytest.mark.skipif("EDGEFL_DATA" not in os.environ, reason="EDGEFL_DATA does not name the data sets")
def test_the_real_mnist() -> None:
    """The original files are read whole."""
    test = open_source(f"idx:{Path(os.environ['EDGEFL_DATA']) / 'mnist'}?split=test").load()
    assert test.x.shape == (10000, 28, 28)
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
