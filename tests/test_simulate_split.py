"""Cutting data into clients: who gets what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.sources.clients import clients_of
from edgefl.sources.parse import absolute, open_source
from edgefl.sources.split import dirichlet_split, iid_split, natural_split, shard_split

LABELS = np.random.default_rng(0).integers(0, 10, 1000)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(20, 300), clients=st.integers(1, 20), seed=st.integers(0, 1000))
def test_every_split_deals_each_example_once(count: int, clients: int, seed: int) -> None:
    """The parts are disjoint and ascending; together they are all rows, of shards all that fill whole ones."""
    labels = np.random.default_rng(seed).integers(0, 5, count)
    for parts, left in (
        (iid_split(count, clients, seed=seed), 0),
        (dirichlet_split(labels, clients, alpha=0.5, seed=seed), 0),
        (shard_split(labels, clients, each=1, seed=seed), count % clients),
        (natural_split(labels), 0),
    ):
        dealt = np.concatenate(parts)
        assert len(np.unique(dealt)) == len(dealt) == count - left
        assert all((np.diff(part) > 0).all() for part in parts)


def test_equal_seeds_give_equal_parts_and_others_do_not() -> None:
    """A split is a function of its seed."""
    for split in (
        lambda seed: iid_split(1000, 7, seed=seed),
        lambda seed: shard_split(LABELS, 7, each=2, seed=seed),
        lambda seed: natural_split(LABELS, 4, seed=seed),
    ):
        first, again, other = split(1), split(1), split(2)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_shards_hold_few_classes_and_iid_parts_hold_all() -> None:
    """With two shards a client has at most four classes, with IID parts of 100 examples all ten."""
    for rows in shard_split(LABELS, 10, each=2, seed=0):
        assert len(np.unique(LABELS[rows])) <= 4
        assert len(rows) == 100
    assert all(len(np.unique(LABELS[rows])) == 10 for rows in iid_split(1000, 10, seed=0))


def test_impossible_splits_are_refused() -> None:
    """Too few examples, clients or shards are the caller's error."""
    for split in (
        lambda: iid_split(3, 4, seed=0),
        lambda: iid_split(3, 0, seed=0),
        lambda: shard_split(LABELS, 600, each=2, seed=0),
        lambda: shard_split(LABELS, 6, each=0, seed=0),
        lambda: natural_split(LABELS, 11),
    ):
        with pytest.raises(DataError):
            split()


@pytest.fixture
def recording(tmp_path):
    """A recording of two channels and three people, the last of whom is for testing."""
    signal = np.arange(200, dtype=np.int16).reshape(2, 100)
    path = tmp_path / "recording.npz"
    np.savez(
        path, signal=signal, scale=np.array([0.5, 2.0]), win_start=np.array([0, 10, 20, 90]), win_len=np.array(8),
        win_label=np.array([0, 1, 2, 1]), win_user=np.array([1, 1, 2, 3]), test_users=np.array([3]),
    )  # fmt: skip
    return path


def test_windows_are_cut_and_scaled(recording) -> None:
    """A window is its channels from its start on, times their scales; people for testing are in the test part alone."""
    train, test = (open_source(f"windows:{recording}?split={split}").load() for split in ("train", "test"))
    assert isinstance(train, Examples)
    assert train.x.shape == (3, 2, 8)
    np.testing.assert_array_equal(train.x[1], np.stack([np.arange(10, 18) * 0.5, (100 + np.arange(10, 18)) * 2.0]))
    assert train.y.tolist() == [0, 1, 2]
    assert test.x[0, 0, 0] == 45.0
    assert len(open_source(f"windows:{recording}").load()) == 4
    assert clients_of(open_source(f"windows:{recording}?split=train")).tolist() == [1, 1, 2]


def test_windows_outside_of_the_recording_are_refused(recording, tmp_path) -> None:
    """A window that would reach beyond the end, or a missing array, is named."""
    arrays = dict(np.load(recording))
    np.savez(tmp_path / "far.npz", **{**arrays, "win_start": np.array([0, 10, 20, 95])})
    np.savez(tmp_path / "short.npz", **{**arrays, "win_label": np.array([0, 1])})
    np.savez(tmp_path / "less.npz", **{name: array for name, array in arrays.items() if name != "scale"})
    for name in ("far", "short", "less"):
        with pytest.raises(DataError):
            open_source(f"windows:{tmp_path / name}.npz").load()


def test_clients_are_read_where_the_data_names_them(tmp_path) -> None:
    """An archive with an array `client` names them; digits name nobody."""
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3, dtype=np.int64), client=np.array([4, 4, 5]))
    assert clients_of(open_source(f"npz:{tmp_path}/a.npz")).tolist() == [4, 4, 5]
    with pytest.raises(DataError, match="does not say whose"):
        clients_of(open_source("digits:"))
    assert absolute("windows:here.npz?split=test").startswith("windows:/")
