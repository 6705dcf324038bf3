"""A source of examples, named by a line of text, as it stands in a device's configuration or on the command line.

    idx:IMAGES[,LABELS]            idx files, `.gz` or not; the labels file is found by its name if it is not given
    idx:DIR[?split=train|test]     a directory with MNIST's four files
    npz:FILE[?client=3]            a numpy archive with `x` and `y`, and `client` if one client's part is wanted
    windows:FILE[?split=train|test]  windows of a recording of several people (`windows`), split by person
    digits:[?split=train|test]     scikit-learn's digits, enlarged to 28 x 28

Rules: parsing reads no file, so a configuration can be checked anywhere; `load` reads everything anew each time, so that data
which has grown since the last round is seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.sources.digits import DigitsSource
from edgefl.sources.idx import IdxSource
from edgefl.sources.npz import NpzSource
from edgefl.sources.windows import WindowsSource

FORMS = "idx:IMAGES[,LABELS], idx:DIR?split=train, npz:FILE[?client=3], windows:FILE?split=train or digits:?split=train"


class Source(Protocol):
    """Where examples come from."""

    def load(self) -> Examples:
        """All examples, at least one.

        Raises:
            DataError: the data is missing, damaged, too large or of the wrong shape.
        """
        ...


def open_source(text: str) -> Source:
    """The source that a line of text names. Nothing is read yet.

    Raises:
        DataError: the text names no kind of source, or has an option that this kind does not take.
    """
    kind, colon, rest = text.partition(":")
    place, _, query = rest.partition("?")
    if not colon or kind not in ("idx", "npz", "windows", "digits"):
        raise DataError(f"no such data source {text!r}", expected=FORMS, remedy="Correct the source")
    options = _options(text, query)
    match kind:
        case "idx":
            _allow(text, options, "split")
            images, _, labels = _path(text, place).partition(",")
            return IdxSource(Path(images), Path(labels) if labels else None, _split(text, options) if "split" in options else "")
        case "npz":
            _allow(text, options, "client")
            return NpzSource(Path(_path(text, place)), _client(text, options))
        case "windows":
            _allow(text, options, "split")
            return WindowsSource(Path(_path(text, place)), _split(text, options) if "split" in options else "")
        case _:
            _allow(text, options, "split")
            if place:
                raise DataError(f"source {text!r} takes no file", expected="digits: or digits:?split=test", found=place)
            return DigitsSource(_split(text, options))


def absolute(text: str) -> str:
    """The same source with absolute paths: for a process that runs in another directory. What names no file stays as it is."""
    kind, colon, rest = text.partition(":")
    place, mark, query = rest.partition("?")
    if kind not in ("idx", "npz", "windows") or not place:
        return text
    paths = place.split(",", 1) if kind == "idx" else [place]
    return f"{kind}{colon}{','.join(str(Path(path).absolute()) for path in paths)}{mark}{query}"


def _options(text: str, query: str) -> Mapping[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not equals or name in options:
            raise DataError(f"option {pair!r} of source {text!r} cannot be read", expected="each option once, as name=value")
        options[name] = value
    return options


def _allow(text: str, options: Mapping[str, str], *names: str) -> None:
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise DataError(f"unknown option of source {text!r}", expected=" or ".join(names), found=", ".join(unknown))


def _path(text: str, place: str) -> str:
    if not place or "\0" in place:
        raise DataError(f"source {text!r} names no file", expected=FORMS)
    return place


def _split(text: str, options: Mapping[str, str]) -> str:
    split = options.get("split", "train")
    if split not in ("train", "test"):
        raise DataError(f"unknown split in source {text!r}", expected="train or test", found=repr(split))
    return split


def _client(text: str, options: Mapping[str, str]) -> int | None:
    if "client" not in options:
        return None
    value = options["client"]
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise DataError(f"client of source {text!r} is no number", expected="a whole number from 0", found=repr(value))
    return int(value)
