"""TOML read strictly into a struct, and a flat struct written as TOML.

Strict means: an unknown key, a missing key, a wrong type or a value out of range is an error that names the file, the key and
what was found. Nothing is guessed, because a misspelt key in a file that a person wrote is a mistake, not an extension.
"""

import json
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from edgefl.errors import InputError

MAX_BYTES = 64 * 1024
"""No file that a person writes for edgefl is longer."""

T = TypeVar("T", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[T], error: type[InputError], implied: dict[str, str] | None = None) -> T:
    """The struct in a TOML file.

    Args:
        path: the file.
        kind: struct type, with `forbid_unknown_fields`.
        error: what to raise.
        implied: values of fields that the file itself must not hold (a name that is the file's name).

    Raises:
        InputError: of the given kind; the file is missing, unreadable, too long, no TOML, or does not fit the struct.
    """
    data = _load(path, error)
    for key, value in (implied or {}).items():
        if key in data:
            raise error(f"{path} key {key!r} is not written in the file", found=repr(data[key])[:100], remedy="Remove the key")
        data[key] = value
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{path} {_complaint(str(problem))}", found=_found(data, str(problem)), remedy="Correct the file") from None


def _load(path: Path, error: type[InputError]) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path} does not exist", remedy="Check the path") from None
    except OSError as problem:
        raise error(f"{path} cannot be read", found=problem.strerror or str(problem)) from problem
    if len(raw) > MAX_BYTES:
        raise error(f"{path} is too long", expected=f"at most {MAX_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise error(f"{path} is no valid TOML", found=str(problem), remedy="Correct the file") from None


def _complaint(message: str) -> str:
    """Msgspec's sentence with the key first: `Expected int - at $.ram_mb` becomes `key 'ram_mb': expected int`."""
    text, _, place = message.partition(" - at `$.")
    text = text[:1].lower() + text[1:]
    return f"key {place.rstrip('`')!r}: {text}" if place else text


def _found(data: dict[str, object], message: str) -> str:
    key = message.partition(" - at `$.")[2].rstrip("`").partition("[")[0].partition(".")[0]
    return repr(data[key])[:100] if key in data else ""


def write_toml(value: msgspec.Struct, comments: dict[str, str] | None = None) -> str:
    """A flat struct (strings, integers, floats, booleans, lists of strings) as TOML, with a comment line before some keys."""
    lines = []
    for key, item in msgspec.to_builtins(value).items():
        if comments and key in comments:
            lines.append(f"# {comments[key]}")
        # JSON's strings, numbers, booleans and arrays are TOML's too, once DEL is escaped, which JSON leaves alone.
        text = json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"
