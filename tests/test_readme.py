"""The README: what it tells people to type is typed here."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def free_port() -> str:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.broker
def test_every_shell_command_of_the_readme_works_in_its_order(tmp_path: Path) -> None:
    """The shell blocks, run one after the other in an empty directory, all succeed, and the fleet trains."""
    pytest.importorskip("torch")
    for kind, text in BLOCKS:
        if kind == "python":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    script = "set -e\n" + "".join(text for kind, text in BLOCKS if kind == "sh").replace("18883", free_port())
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "edgefl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgefl "$@"\n')
    (binaries / "edgefl").chmod(0o755)
    path = f"{binaries}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    bash = shutil.which("bash") or "bash"
    log = (tmp_path / "log").open("w+")
    shell = subprocess.Popen(
        [bash, "-c", script], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = shell.wait(500)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        log.seek(0)
        output = log.read()
    assert code == 0, output
    assert "round 2: 2 updates" in output
    assert '"state":"finished"' in output


def test_make_commands_of_the_readme_exist() -> None:
    """Every `make` verb that the README names is in the Makefile."""
    verbs = [line.split()[1] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    assert verbs == ["demo", "test"]
    for verb in verbs:
        subprocess.run(["make", "--dry-run", verb], cwd=ROOT, check=True, capture_output=True)


def test_files_that_the_readme_points_to_exist() -> None:
    """No link leads nowhere."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
