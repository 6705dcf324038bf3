"""Results that anybody can repeat: `python -m benchmarks.results NAME --json FILE`.

Model: NAME is a study, something that yields rows (`benchmarks.rows`): federated runs (`benchmarks.simulated`, cases in
`benchmarks.cases`), the compression of weights at rest (`benchmarks.compress_lenet`), what a push makes for boards of different
sizes (`benchmarks.profiles`), or a model that is pruned while a fleet trains it (`benchmarks.fedltn`). Every study is run with
several seeds.
The table shows means over the seeds; the JSON holds every row and the settings.

Data sets are read from the directory that EDGEFL_DATA names; `smoke` needs none.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cases import STUDIES
from benchmarks.compress_lenet import CompressLenet
from benchmarks.fedltn import FedLtn
from benchmarks.profiles import Profiles
from benchmarks.rows import Asked, Measured, Row
from benchmarks.simulated import Simulated
from edgefl import __version__
from edgefl.errors import EdgeflError

RESULTS: Mapping[str, Measured] = {
    **{name: Simulated(study) for name, study in STUDIES.items()},
    "compress-lenet": CompressLenet(),
    "profiles": Profiles(),
    "fedltn": FedLtn(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, print its table, write its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=RESULTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes; the numbers do not depend on it")
    parser.add_argument("--only", metavar="LABEL", help="only the cases whose label contains this")
    given = parser.parse_args(arguments)
    study = RESULTS[given.name]
    print(f"{given.name}: {study.goal}")
    rows: list[Row] = []
    try:
        for found in study.rows(Asked(given.seeds, given.workers, given.only or "")):
            rows += found
    except EdgeflError as error:
        raise SystemExit(f"error: {error}") from None
    study.show(rows)
    if given.json is not None:
        given.json.write_text(json.dumps(report(given.name, study, rows), indent=1) + "\n", encoding="utf-8")


def report(name: str, study: Measured, rows: Sequence[Row]) -> Mapping[str, object]:
    """What is written."""
    return {
        "name": name,
        "goal": study.goal,
        "rows": rows,
        "experiments": study.settings(),
        "edgefl": __version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
