"""Finding the factory that a name means: `package.module:factory`, looked up with the current directory on the path.

Model: what a factory heeds is read from its signature. It is called with the width alone, or with nothing; one that has a
parameter `exits`, with a default that means all of them, is also called with their number.

Rule: what goes wrong while somebody else's module is imported is said in one sentence, never shown as a traceback.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from edgefl.errors import ModelError
from edgefl.export.architectures import BUILT_IN

REMEDY_FACTORY = "Name a built-in model ({}) or package.module:factory".format(", ".join(BUILT_IN))

Factory = Callable[..., nn.Module]
"""Takes the width in (0, 1]; and, if it has exits, their number as the keyword `exits`, without which it builds all."""
EXITS = "exits"


@dataclass(frozen=True, slots=True)
class Found:
    """A factory as it was found.

    Attributes:
        factory: as a function of the width and, if it heeds them, the number of exits.
        scalable: whether it heeds the width.
        exits: whether it heeds the number of exits.
    """

    factory: Factory
    scalable: bool
    exits: bool


def named_factory(name: str) -> Found:
    """The built-in factory of this name, or the one that it points to.

    Raises:
        ModelError: no such module or attribute, the module cannot be imported, what it names is not callable, or its `exits`
            have no default.
    """
    return _adapted(name, BUILT_IN[name] if name in BUILT_IN else _find(name))


def _find(name: str) -> object:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ModelError(f"no built-in model is called {name!r}", remedy=REMEDY_FACTORY)
    with _current_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise ModelError(f"there is no module {module_name!r}", remedy="Run in the directory that holds it") from None
            raise ModelError(f"module {module_name!r} cannot be imported", found=str(error)) from error
        except Exception as error:
            raise ModelError(f"module {module_name!r} cannot be imported", found=said(error)) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"module {module_name!r} has no {attribute!r}", remedy=REMEDY_FACTORY)
        found = getattr(found, part)
    return found


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _adapted(name: str, found: object) -> Found:
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"{name!r} is no model factory",
            expected="a function or class that returns a torch module",
            found=f"an object of type {type(found).__name__}",
        )
    call = cast("Callable[..., nn.Module]", found)
    # A signature tells less than a call: classes, partials and builtins hide theirs. `inspect` is asked first all the same,
    # because a TypeError from inside the factory must not be mistaken for a missing argument.
    exits = _has_exits(name, call)
    if _takes(call, 1.0, exits=exits):
        return Found(call, scalable=True, exits=exits)

    def fixed(width: float, **exits: int) -> nn.Module:  # noqa: ARG001  the width is 1, checked by `build`
        return call(**exits)

    return Found(fixed, scalable=False, exits=exits)


def _has_exits(name: str, call: Callable[..., object]) -> bool:
    try:
        parameter = inspect.signature(call).parameters.get(EXITS)
    except ValueError:  # a builtin without a signature
        return False
    if parameter is not None and parameter.default is inspect.Parameter.empty:
        raise ModelError(
            f"the factory of model {name!r} does not say how many exits the whole model has",
            expected=f"a default for its parameter {EXITS!r}",
            remedy=f"Write for example `{EXITS}: int = 4`",
        )
    return parameter is not None


def _takes(call: Callable[..., object], width: float, *, exits: bool) -> bool:
    try:
        inspect.signature(call).bind(width, **({EXITS: 1} if exits else {}))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def said(error: BaseException) -> str:
    """The first line of what an error says, with its kind."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"
