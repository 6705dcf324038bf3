"""How the suite runs: random tests are repeatable, and two workers share a small machine.

A promise must not hold on one day and break on the next: random tests use the same examples every time. New examples are looked
for with `EDGEFL_EXPLORE=1 make test`; what is found that way becomes a test of its own.
"""

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("explore" if os.environ.get("EDGEFL_EXPLORE") else "repeatable")

# Each worker has one core. Threads that wait for each other on it spin, here and in the processes that tests start.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


# Tests put thousands of files in the place of others, and a disk makes them wait for each. Memory does not, where there is much.
SHARED, ROOM = Path("/dev/shm"), 4 << 30  # noqa: S108 - pytest makes its own directory below, for this user alone
if SHARED.is_dir() and shutil.disk_usage(SHARED).free >= ROOM and not os.statvfs(SHARED).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker begins with files that have slow tests, so that no long test starts last.

    `--dist worksteal` gives every worker a stretch of the list, and who has finished takes from the end of another's. Files
    remain whole and in their order, because a module's fixtures are made once in a worker.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [own for own in files.values() if any(item.get_closest_marker("slow") for item in own)]
    quick = [item for own in files.values() if not any(item.get_closest_marker("slow") for item in own) for item in own]
    dealt: list[pytest.Item] = []
    for worker in range(workers):
        dealt += [item for own in slow[worker::workers] for item in own]
        stretch = len(items) * (worker + 1) // workers - len(dealt)
        dealt += quick[: max(0, stretch)]
        del quick[: max(0, stretch)]
    items[:] = dealt + quick


def pytest_collection_finish(session: pytest.Session) -> None:  # noqa: ARG001 - pytest's signature
    """Take what collection has imported (torch alone: a million objects) out of every later search for garbage."""
    gc.collect()
    gc.freeze()
