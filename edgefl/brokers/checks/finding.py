"""What a check of the broker says.

Rule: silence proves nothing. A check that concludes from "nothing was heard" first makes sure that something would have been
heard; where that is impossible it says `not checked`, which is no success.
"""

from typing import Literal

import msgspec

State = Literal["ok", "failed", "not checked"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check's result.

    Attributes:
        name: of the check; stable.
        state: failed means that the broker does what it must not, or does not do what it must.
        text: what was seen.
        remedy: what to do, an imperative sentence; empty when there is nothing to do.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """The broker does what it must."""
    return Finding(name=name, state="ok", text=text)


def failed(name: str, text: str, remedy: str) -> Finding:
    """The broker does not."""
    return Finding(name=name, state="failed", text=text, remedy=remedy)


def unknown(name: str, text: str, remedy: str = "") -> Finding:
    """It could not be found out."""
    return Finding(name=name, state="not checked", text=text, remedy=remedy)
