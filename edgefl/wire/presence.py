"""What a device says of itself: that it is there and what it holds (`State`), and how far it is or what went wrong (`Report`).

Model: `State` is retained by the broker: the birth when the device connects, and the death as its will, which the broker
publishes when the device is lost without a word. A `Report` is about one version of one model and is not kept.
"""

from typing import Annotated

import msgspec

from edgefl.wire.messages import Id, Number, Text, Version


class Installed(msgspec.Struct, frozen=True, array_like=True):
    """A model as a device holds it."""

    model: Id
    version: Version
    variant: Id


class State(msgspec.Struct, frozen=True, array_like=True):
    """Birth (online) with the inventory, or death (the will) with the same session number."""

    session: Number
    online: bool
    profile: Id = "unknown"
    engine: Id = "unknown"
    software: Id = "unknown"
    models: Annotated[tuple[Installed, ...], msgspec.Meta(max_length=64)] = ()


class Report(msgspec.Struct, frozen=True, array_like=True):
    """Progress of a device, or its last error.

    Attributes:
        model, version, round: what it is about.
        step: `fetching`, `deferred`, `trial`, `activated`, `reverted`, `training`, `trained`, `adopted` (the final weights),
            `failed`.
        percent: of the step.
        received: payload bytes that the device has received since it started.
        peak_rss: bytes, agent and trainer together.
        error: what went wrong, empty when nothing did.
        code: the same in one word that a program can tell apart: an error's `code`, see `edgefl.errors`.
        fetched: bytes of the version's files that are there, at step `fetching`.
    """

    model: Id
    version: Number
    round: Number
    step: Id
    percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    received: Number = 0
    peak_rss: Number = 0
    error: Text = ""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    fetched: Number = 0
