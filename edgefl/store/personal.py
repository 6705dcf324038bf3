"""The personal tensors of a model: values that a device keeps for itself from round to round and never sends.

Model: a round brings weights for the whole vector; those of personal tensors are replaced by the device's own before training,
and written back after it. Normalisation layers that stay personal make a model that fits the device's own data (FedBN: Li et al.,
ICLR 2021, https://arxiv.org/abs/2102.07623; SiloBN: Andreux et al. 2020, https://arxiv.org/abs/2008.07424).

Rules: the file belongs to one version and one layout, and is checked by its hash; another one, or a damaged one, counts as
absent: the device then starts from the values that came with the round, as it did in its first one.
"""

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from edgefl.layout import Float32, Layout
from edgefl.store.atomic import write_file

OVERHEAD = 1024
"""Bytes of a file beyond its values, at most."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    version: int
    layout: str
    values: bytes
    sha256: bytes


def with_personal(path: Path, version: int, layout: Layout, vector: Float32) -> Float32:
    """A vector with the device's own values where its layout is personal; the same vector if there are none.

    Args:
        path: of the file.
        version: of the model.
        layout: of the vector.
        vector: as it came with the round; not changed.
    """
    places = layout.personal()
    own = _read(path, version, layout, 4 * len(places)) if len(places) else None
    if own is None:
        return vector
    mixed = vector.copy()
    mixed[places] = own
    return mixed


def keep_personal(path: Path, version: int, layout: Layout, vector: Float32) -> None:
    """Keep the personal values of a vector; nothing is written if the layout has none.

    Raises:
        StoreError: the file cannot be written.
    """
    places = layout.personal()
    if len(places):
        values = vector[places].astype("<f4").tobytes()
        kept = _Kept(version, layout.digest(), values, hashlib.sha256(values).digest())
        write_file(path, msgspec.msgpack.encode(kept))


def _read(path: Path, version: int, layout: Layout, length: int) -> Float32 | None:
    try:
        if path.stat().st_size > length + OVERHEAD:
            return None
        kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    belongs = (kept.version, kept.layout, len(kept.values)) == (version, layout.digest(), length)
    if not belongs or hashlib.sha256(kept.values).digest() != kept.sha256:
        return None
    values = np.frombuffer(kept.values, dtype="<f4").astype(np.float32)
    return values if np.isfinite(values).all() else None
