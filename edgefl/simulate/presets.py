"""Ready experiments, and changing single values of one: `preset("mcmahan-iid")`, `changed(experiment, ["plan.rounds=5"])`."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgefl.errors import ConfigError
from edgefl.simulate.experiment import Experiment
from edgefl.strict_toml import read_toml

_DIRECTORY = Path(__file__).parent / "ready"


def names() -> list[str]:
    """The presets, in alphabetical order."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


def preset(name: str) -> Experiment:
    """A ready experiment. Raises ConfigError when there is none of this name."""
    if name not in names():
        raise ConfigError(f"no preset is called {name!r}", expected=", ".join(names()), remedy="See `edgefl simulate --list`")
    return read_toml(_DIRECTORY / f"{name}.toml", Experiment, ConfigError)


def changed(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with other values.

    Args:
        experiment: to begin with.
        settings: `key=value`, the key with dots for tables, the value as in TOML or a plain word. A new `kind` replaces its
            whole table.

    Raises:
        ConfigError: a setting that is none, or a key or value that is impossible.
    """
    tree: dict[str, Any] = msgspec.to_builtins(experiment)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"setting {setting!r} cannot be read", expected="key=value", remedy="For example --set plan.rounds=5"
            )
        _put(tree, key.strip().split("."), _value(text.strip()), setting)
    try:
        return msgspec.convert(tree, Experiment)
    except msgspec.ValidationError as error:
        raise ConfigError("the experiment is impossible", found=str(error), remedy="Correct the settings") from None


def _put(tree: dict[str, Any], path: Sequence[str], value: object, setting: str) -> None:
    *tables, last = path
    for name in tables:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"setting {setting!r} goes too deep", found=f"{name!r} is no table")
    if last == "kind":
        tree.clear()
    tree[last] = value


def _value(text: str) -> object:
    """A TOML value; what is none is a word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
