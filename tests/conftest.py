"""How the suite runs: random tests are repeatable, and two workers share a small machine.

A promise must not hold on one day and break on the next: random tests use the same examples every time. New examples are looked
for with `EDGEFL_EXPLORE=1 make test`; what is found that way becomes a test of its own.
"""

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("explore" if os.environ.get("EDGEFL_EXPLORE") else "repeatable")

# Each worker has one core. Threads that wait for each other on it spin, here and in the processes that tests start.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


def pytest_collection_finish(session: pytest.Session) -> None:  # noqa: ARG001 - pytest's signature
    """Take what collection has imported (torch alone: a million objects) out of every later search for garbage."""
    gc.collect()
    gc.freeze()
