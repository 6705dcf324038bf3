"""The peers' environments: one virtual environment each, made with `venv` and pip from whatever registry pip is set up for.

Rules: an environment that is complete is used again; one that does not come to be is told with pip's last error, and the
benchmark goes on without it. A peer never shares an environment with edgefl.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.uplink_result import LeftOutError

INSTALL_SECONDS = 1800.0
TORCH = "torch==2.13.0"
STEPS: Mapping[str, Sequence[Sequence[str]]] = {
    "flwr": (("flwr", "numpy"),),
    "openfl": (("openfl",),),
    # NNCodec asks for any torch: first the one that this project pins, and then NNCodec beside exactly that.
    "nncodec": ((TORCH, "numpy<2"), (TORCH, "nncodec")),
}
"""Distribution -> what pip is to install, step by step."""
COMPLETE = "complete.json"


@dataclass(frozen=True, slots=True)
class Peer:
    """An environment that is complete.

    Attributes:
        name: of the distribution.
        directory: of the environment.
        versions: of everything in it.
    """

    name: str
    directory: Path
    versions: Mapping[str, str]

    @property
    def version(self) -> str:
        """Of the distribution itself."""
        return self.versions[self.name]

    def program(self, name: str) -> Path:
        """Where a program of the environment is; an empty name gives the directory."""
        return self.directory / "bin" / name


def install(name: str, root: Path) -> Peer:
    """The environment of a peer in `root`, made if it is not there.

    Raises:
        LeftOutError: it cannot be made.
    """
    directory = root.resolve() / name
    complete = directory / COMPLETE
    if not complete.exists():
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)], f"no environment for {name}")
        pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "--disable-pip-version-check"]
        for wanted in STEPS[name]:
            _run([*pip, "install", *wanted], f"{name} does not install")
        listed = _run([*pip, "list", "--format=json"], name)
        versions = {str(entry["name"]).lower(): str(entry["version"]) for entry in json.loads(listed)}
        complete.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Peer(name, directory, json.loads(complete.read_text(encoding="utf-8")))


def _run(command: Sequence[str], what: str) -> str:
    """Standard output. Raises LeftOutError with the last line of the errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOutError(f"{what}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")] or done.stderr.splitlines()
        raise LeftOutError(f"{what}: {lines[-1].strip() if lines else f'exit status {done.returncode}'}")
    return done.stdout
