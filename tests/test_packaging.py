"""The wheel: what is in it, and that it works away from the source tree."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("build")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_carries_profiles_units_and_broker_configuration(wheel: Path) -> None:
    """What a board and a broker need is inside the wheel; tests and benchmarks are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "edgefl/firmware_profiles/rpi-zero-2w.toml",
        "edgefl/devices/edgefl-device.service",
        "edgefl/devices/install.sh",
        "edgefl/devices/uninstall.sh",
        "edgefl/devices/trim.sh",
        "edgefl/devices/camera.conf",
        "edgefl/broker/mosquitto.conf",
        "edgefl/broker/claims.conf",
        "edgefl/simulate/ready/digits.toml",
        "edgefl/py.typed",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_wheel_is_named_as_the_readme_says_and_asks_for_one_onnx_runtime(wheel: Path) -> None:
    """The distribution is edgefl-fleet; for any machine exactly one distribution of ONNX Runtime is required."""
    from packaging.requirements import Requirement

    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode())
    assert metadata["Name"] == "edgefl-fleet"
    assert {"device", "server", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    runtimes = [r for r in map(Requirement, metadata.get_all("Requires-Dist", [])) if r.name.startswith("onnxruntime")]
    for machine, system, python in (("x86_64", "linux", "3.11"), ("aarch64", "linux", "3.11"), ("x86_64", "linux", "3.13")):
        environment = {"platform_machine": machine, "sys_platform": system, "python_version": python, "extra": ""}
        chosen = [r.name for r in runtimes if r.marker is None or r.marker.evaluate(environment)]
        assert chosen == (["onnxruntime-training-cpu"] if (machine, python) == ("x86_64", "3.11") else ["onnxruntime"])


@pytest.mark.slow
def test_installed_package_finds_what_it_carries(wheel: Path, tmp_path: Path) -> None:
    """Away from the source tree the package makes a fleet, a bundle and a broker configuration."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import edgefl, sys; from edgefl.cli.main import run; from edgefl.profile import shipped_profiles;"
        f"assert edgefl.__file__.startswith({str(tmp_path)!r}), edgefl.__file__;"
        "assert len(shipped_profiles()) >= 8;"
        "sys.exit(run(['init', 'fleet']) or run(['provision', 'cam-01', '--profile', 'rpi-zero-2w', '--out', 'bundles']))"
    )
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bundles" / "cam-01" / "install.sh").is_file()
