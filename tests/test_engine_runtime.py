"""ONNX Runtime is configured for a small machine that has other work."""

import pytest

from edgefl.engine.runtime import worker_places


@pytest.mark.parametrize(
    ("threads", "allowed", "places"),
    [
        (1, {0, 1, 2, 3}, ""),
        (2, {0, 1}, "2"),
        (2, {0, 1, 2, 3}, "4"),
        (4, {0, 1, 2, 3}, "2;3;4"),
        (3, {4, 6, 7}, "7;8"),
        (2, {3}, ""),
        (4, {0, 1}, ""),
    ],
)
def test_each_worker_has_a_processor_of_its_own_and_the_first_thread_is_free(
    threads: int, allowed: set[int], places: str
) -> None:
    """Workers get the last of the allowed processors, counted from 1; with too few processors nothing is fixed."""
    assert worker_places(threads, allowed) == places
