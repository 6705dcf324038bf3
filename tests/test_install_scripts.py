"""install.sh and uninstall.sh without root: what they refuse, and that they change nothing then. The rest is in tests/debian."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision

ROOT = Path(__file__).parent.parent
SCRIPTS = ["install.sh", "uninstall.sh", "trim.sh"]


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle."""
    root = tmp_path_factory.mktemp("fleet")
    fleet = create_fleet(root / "farm", name="farm", host="hub.example", port=9000)
    return provision(fleet, ["cam-01"], "rpi-zero-2w", root / "out")[0].bundle


@pytest.fixture
def bundle(provisioned: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, in a path with a space."""
    return Path(shutil.copytree(provisioned, tmp_path / "a bundle"))


def answers(tmp_path: Path, **programs: str) -> dict[str, str]:
    """An environment in which some programs give prepared answers, and those that change a system say that they were called."""
    directory = tmp_path / "programs"
    directory.mkdir()
    forbidden = {name: f"echo {name} >>'{tmp_path}/called'" for name in ("useradd", "userdel", "systemctl", "pip", "install")}
    for name, script in (forbidden | {"id": "echo 1000"} | programs).items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def run(script: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A script, as a user runs it from anywhere."""
    command = ["sh", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound(script: str) -> None:
    """They parse as POSIX shell, and shellcheck finds nothing."""
    path = ROOT / "devices" / script
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", path], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wheels"], "--wheels needs a directory"),
        (["--wheels", "/nonexistent"], "there is no directory /nonexistent"),
        (["--wheels", "EMPTY"], "holds no edgefl_fleet wheel"),
        (["--force"], "unknown option --force"),
        (["/nonexistent/edgefl.whl"], "there is no wheel"),
        (["one", "two"], "one wheel or requirement at most"),
        ([], "this needs root"),
    ],
)
def test_wrong_arguments_are_refused(bundle: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    """One line that says what is wrong, exit code 1, and no program that changes anything was called."""
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty") if argument == "EMPTY" else argument for argument in arguments]
    result = run(bundle / "install.sh", *arguments, environment=answers(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("missing", ["device.toml", "ca.crt", "device.key", "device.crt", "trim.sh", "edgefl-device.service"])
def test_an_incomplete_bundle_is_refused(bundle: Path, tmp_path: Path, missing: str) -> None:
    """The missing file is named before anything else is asked."""
    (bundle / missing).unlink()
    result = run(bundle / "install.sh", environment=answers(tmp_path))
    assert (result.returncode, f"{missing} is missing" in result.stderr) == (1, True)


def test_a_claim_stands_in_for_key_and_certificate(bundle: Path, tmp_path: Path) -> None:
    """A bundle whose board makes its own key comes as far as the question who runs it."""
    (bundle / "device.key").unlink()
    (bundle / "device.crt").unlink()
    (bundle / "claim.toml").write_text("")
    assert "this needs root" in run(bundle / "install.sh", environment=answers(tmp_path)).stderr


@pytest.mark.skipif(not Path("/run").is_dir() or Path("/run/systemd/system").is_dir(), reason="needs a machine without systemd")
def test_a_machine_without_systemd_is_told_another_way(bundle: Path, tmp_path: Path) -> None:
    """The agent runs there too, but install.sh does not know how."""
    result = run(bundle / "install.sh", environment=answers(tmp_path, id="echo 0"))
    assert "does not run systemd" in result.stderr
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(("arguments", "words"), [(["--all"], "unknown argument --all"), (["--purge"], "needs root")])
def test_uninstalling_needs_root_and_the_right_word(bundle: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    """Nothing is removed by mistake."""
    result = run(bundle / "uninstall.sh", *arguments, environment=answers(tmp_path))
    assert (result.returncode, words in result.stderr) == (1, True)
    assert not (tmp_path / "called").exists()


def test_the_debian_run_says_why_it_skips(tmp_path: Path) -> None:
    """Without root it ends well, with the reason."""
    (tmp_path / "a.whl").touch()
    result = subprocess.run(
        [ROOT / "tests" / "debian" / "run.sh", "python3", str(tmp_path / "a.whl"), str(tmp_path / "report.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**answers(tmp_path), "HOME": str(tmp_path)},
    )
    assert (result.returncode, result.stdout) == (0, "skipped: only root may boot another user land\n")
