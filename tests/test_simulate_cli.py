"""`edgefl simulate` on the command line, its presets and its plots."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from edgefl.cli.main import run
from edgefl.errors import ConfigError
from edgefl.simulate.experiment import Attack, Experiment, Iid, Shards, located
from edgefl.simulate.presets import changed, names, preset
from edgefl.simulate.result import Result

pytest.importorskip("torch")
if find_spec("sklearn") is None:  # only its digits are read; to import it takes seconds
    pytest.skip("needs scikit-learn", allow_module_level=True)
QUICK = ["--preset", "digits", "--set", "width=0.1", "--set", "plan.rounds=3", "--workers", "1"]


def test_every_preset_is_a_valid_experiment_with_a_sentence_about_it(capsys) -> None:
    """All are read strictly, and --list shows each with what it is about."""
    assert run(["simulate", "--list"]) == 0
    shown = capsys.readouterr().out
    for name in names():
        assert preset(name).name == name
        assert f"{preset(name).about}\n" in shown
    assert {"digits", "fedavg-mnist", "mcmahan-iid", "mcmahan-noniid", "stc", "hapt", "fedbuff", "byzantine"} <= set(names())


def test_a_preset_runs_and_writes_json(tmp_path, capsys) -> None:
    """The result is on stdout in words and in the file as JSON."""
    assert run(["simulate", *QUICK, "--json", str(tmp_path / "r.json")]) == 0
    assert "accuracy" in capsys.readouterr().out
    result = Result.read((tmp_path / "r.json").read_bytes())
    assert [row.round for row in result.rows] == [1, 2, 3]
    assert result.experiment.width == 0.1


def test_a_file_runs(tmp_path, capsys) -> None:
    """A TOML file says everything; settings win over it."""
    (tmp_path / "e.toml").write_text('width = 0.1\ndevices = 4\n[split]\nkind = "shards"\neach = 3\n[plan]\nrounds = 9\n')
    assert run(["simulate", "--file", str(tmp_path / "e.toml"), "--set", "plan.rounds=1", "--workers", "1"]) == 0
    assert "after 1 rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --preset or --file"),
        (["--preset", "digits", "--file", "x.toml"], "either --preset or --file"),
        (["--preset", "nothing"], "no preset is called 'nothing'"),
        (["--file", "nothing.toml"], "does not exist"),
        (["--preset", "digits", "--set", "plan.rounds"], "cannot be read"),
        (["--preset", "digits", "--set", "plan.rounds=0"], "impossible"),
        (["--preset", "digits", "--set", "plan.turns=3"], "turns"),
        (["--preset", "digits", "--set", "seed.value=3"], "too deep"),
        (["--preset", "digits", "--set", "model=nothing"], "nothing"),
        (["--preset", "digits", "--against", "nothing.json"], "cannot be read"),
        (["--preset", "mcmahan-iid"], "EDGEFL_DATA"),
    ],
)  # fmt: skip
def test_wrong_input_is_two_and_a_sentence(arguments, words, capsys, monkeypatch) -> None:
    """What a person got wrong is said in one line, with exit code 2."""
    monkeypatch.delenv("EDGEFL_DATA", raising=False)
    assert run(["simulate", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_settings_reach_into_tables() -> None:
    """A dotted key reaches a table, makes one that is not there, and a new kind replaces the whole table."""
    experiment = changed(
        Experiment(split=Shards(each=7)), ["split.kind=iid", "attack.kind=alie", "attack.fraction=0.1", "name=a b"]
    )
    assert experiment.split == Iid()
    assert experiment.attack == Attack(kind="alie", fraction=0.1)
    assert experiment.name == "a b"
    with pytest.raises(ConfigError):
        changed(Experiment(), ["=3"])


def test_data_is_looked_for_where_the_variable_says(monkeypatch) -> None:
    """The variable is filled in; a source without it is left alone."""
    monkeypatch.setenv("EDGEFL_DATA", "/somewhere")
    assert located("idx:$EDGEFL_DATA/mnist?split=train") == "idx:/somewhere/mnist?split=train"
    assert located("digits:") == "digits:"


@pytest.mark.slow
def test_plots_of_several_results(tmp_path) -> None:
    """One result is drawn beside another; the files are PNG."""
    pytest.importorskip("matplotlib")
    first = str(tmp_path / "first.json")
    assert run(["simulate", *QUICK, "--set", "seed=1", "--json", first]) == 0
    speeds = ["--set", "speeds.distribution=equal"]
    assert run(["simulate", *QUICK, *speeds, "--against", first, "--plot", str(tmp_path / "plots")]) == 0
    for name in ("rounds", "bytes", "uplink", "time"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_matplotlib_plots_are_refused_before_anything_runs(tmp_path) -> None:
    """It is said at once what to install, with exit code 4."""
    code = "import sys; sys.modules['matplotlib'] = None; from edgefl.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "simulate", *QUICK, "--plot", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "matplotlib" in done.stderr
    assert "preparing" not in done.stderr


def test_a_result_that_did_not_classify_is_json() -> None:
    """Missing accuracies are null, not NaN."""
    from edgefl.simulate.result import Row

    row = Row(round=1, time=0.0, accuracy=None, loss=None, uplink_bytes=0, downlink_bytes=0, dense_uplink_bytes=0, participants=0)
    assert b'"accuracy":null' in msgspec.json.encode(row)


@pytest.mark.slow
def test_the_document_says_what_works() -> None:
    """The files in docs/simulate.md are experiments, and its Python runs."""
    text = (Path(__file__).parent.parent / "docs" / "simulate.md").read_text()
    blocks = re.findall(r"^```(toml|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    simple, mixed = (msgspec.convert(tomllib.loads(block), Experiment) for kind, block in blocks if kind == "toml")
    assert simple.split == Shards(each=2)
    assert (len(mixed.groups), mixed.ensemble.every) == (3, 1)
    (python,) = (block for kind, block in blocks if kind == "python")
    code = python.replace("rounds=10", "rounds=1").replace("devices=20", "devices=4, width=0.1")
    assert code != python
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
