"""Finding the factory that a name means: `package.module:factory`, looked up with the current directory on the path.

Rule: what goes wrong while somebody else's module is imported is said in one sentence, never shown as a traceback.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch import nn

from edgefl.errors import ModelError
from edgefl.export.architectures import BUILT_IN

REMEDY_FACTORY = "Name a built-in model ({}) or package.module:factory".format(", ".join(BUILT_IN))

Factory = Callable[[float], nn.Module]


def named_factory(name: str) -> tuple[Factory, bool]:
    """The factory of this name as a function of the width, and whether it heeds it.

    Raises:
        ModelError: no such module or attribute, the module cannot be imported, or what it names is not callable.
    """
    return _adapted(name, _find(name))


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


def _adapted(name: str, found: object) -> tuple[Factory, bool]:
    """The factory as a function of the width, and whether it heeds it."""
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"{name!r} is no model factory",
            expected="a function or class that returns a torch module",
            found=f"an object of type {type(found).__name__}",
        )
    call = cast("Callable[..., nn.Module]", found)
    # A signature tells less than a call: classes, partials and builtins hide theirs. `inspect` is asked first all the same,
    # because a TypeError from inside the factory must not be mistaken for a missing argument.
    if _takes_width(call):
        return call, True

    def fixed(width: float) -> nn.Module:  # noqa: ARG001  the width is 1, checked by `build`
        return call()

    return fixed, False


def _takes_width(call: Callable[..., object]) -> bool:
    try:
        inspect.signature(call).bind(1.0)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def said(error: BaseException) -> str:
    """The first line of what an error says, with its kind."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"
