"""What the server releases: what a variant of a version is, when it is good enough to stay, and who is to hold it.

Model: a version of a model has a `Manifest` for each profile, which is a TUF target and names everything that the device must
fetch and know. The `Assignment` tells one device which versions are its own.
"""

from typing import Annotated

import msgspec

from edgefl.errors import MessageError
from edgefl.layout import Layout
from edgefl.profile import trains
from edgefl.recipe import Recipe
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.messages import Id, Number, Text, Version

SERVE = "serve"
"""Role of a variant's int8 graph, which has the version's weights inside."""


class Health(msgspec.Struct, frozen=True, array_like=True):
    """When a version that a device has installed is good enough to stay; otherwise the device goes back to the one before.

    Attributes:
        drop: how much lower than before the accuracy on the device's own data may be, in [0, 1]; 1 leaves it out.
        seconds: that the trial may take; what is slower has failed.
        starts: how many times the trial may be begun (each ended by a crash or a power cut) before it has failed.
        tolerance: of the golden outputs, absolute, beside a relative one of the same size.
    """

    drop: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0
    seconds: Annotated[float, msgspec.Meta(gt=0.0, le=86400.0)] = 900.0
    starts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    tolerance: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1e-3


class Fit(msgspec.Struct, frozen=True, array_like=True):
    """What a variant took when it was run before it was announced (`edgefl.server.rehearsal`); zeros if it was not.

    Attributes:
        peak_bytes: resident memory of the trainer process at its largest: a trial, a round's training, an encoded update; of a
            variant that is only served, a trial.
        step_ms: of the fastest training step on a full batch, on the pushing machine; 0 of a variant that is only served.
        memory_mb: MiB that the profile allows the trainer.
        threads: of the trainer.
        machine: architecture, processor and software of the pushing machine.
    """

    peak_bytes: Number = 0
    step_ms: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    memory_mb: Number = 0
    threads: Number = 0
    machine: Text = ""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a variant is: everything a device must know to hold it, and to train it or answer with it.

    Attributes:
        model: name of the model.
        version: counts the pushes of this model, from 1.
        profile: the profile it was made for.
        variant: names the structure, for example `w0.5-int8`; devices with equal variants share round orders.
        engine: `portable` or `ort-training`; `inference` for a variant that is only served.
        layout: of the flat parameter vector.
        input_shape: of one example.
        classes: number of outputs.
        batch: rows of the training graph; a smaller batch is padded and masked.
        files: all files of the variant (roles `train`, `eval`, `infer`, `weights`, for ort-training also `optimizer`,
            `checkpoint`, without any of these for `inference`, nor `train`; `golden` holds inputs and the outputs that they must
            give; `serve`, if any, is an int8 graph for applications).
        round_key: raw public key whose signature makes round orders of this version valid.
        created, expires: seconds since 1970, server clock.
        recipe: loss and optimiser of its graphs.
        health: when it may stay on a device.
        differences: shorter ways to its `weights` from those of earlier versions.
        sources: where its files may also be had: `https://...` or `file:///...`; the file with SHA-256 H is SOURCE/H.
        fit: what it took to run it.
    """

    model: Id
    version: Version
    profile: Id
    variant: Id
    engine: Id
    layout: Layout
    input_shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 24)], ...], msgspec.Meta(max_length=6)]
    classes: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    files: Annotated[tuple[FileRef, ...], msgspec.Meta(min_length=1, max_length=16)]
    round_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    created: Number
    expires: Number
    recipe: Recipe = Recipe()
    health: Health = Health()
    differences: Annotated[tuple[Difference, ...], msgspec.Meta(max_length=16)] = ()
    sources: Annotated[tuple[Text, ...], msgspec.Meta(max_length=8)] = ()
    fit: Fit = Fit()

    def file(self, role: str) -> FileRef:
        """The file with this role.

        Raises:
            MessageError: the manifest lists none.
        """
        for ref in self.files:
            if ref.role == role:
                return ref
        raise MessageError(f"manifest of {self.model}@{self.version} lists no {role!r} file")

    @property
    def trains(self) -> bool:
        """Whether its devices take part in rounds; otherwise they only answer with it."""
        return trains(self.engine)

    @property
    def offered(self) -> tuple[FileRef, ...]:
        """Everything that a device may ask the server for: the files, and the differences to the weights."""
        return (*self.files, *(difference.file for difference in self.differences))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(ref.length for ref in self.files)


class Assigned(msgspec.Struct, frozen=True, array_like=True):
    """Which version of a model a device is to hold; `rollout` is the number of the rollout that says so, 0 for none."""

    model: Id
    version: Version
    rollout: Number = 0


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """What one device is to hold: the server's word for this device alone.

    Attributes:
        device: whom it is for.
        counter: rises with every change; a device never follows a lower one than it has followed.
        issued, expires: seconds since 1970.
        models: every model that the device is to hold; others are left as they are.
    """

    device: Id
    counter: Number
    issued: Number
    expires: Number
    models: Annotated[tuple[Assigned, ...], msgspec.Meta(max_length=64)] = ()
