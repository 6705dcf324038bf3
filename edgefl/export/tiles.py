"""Planes taken apart into the members of their tiles, the way that costs least without strided views."""

from collections.abc import Sequence

import torch
from torch import Tensor


def tile_members(planes: Tensor, tile: Sequence[int]) -> list[Tensor]:
    """For each member of a tile, row-major, its value in all tiles of `(p, h, w)`: each `(p, h / high, w / wide)`."""
    p, h, w = planes.shape
    high, wide = tile
    columns = (planes.reshape(-1, wide).t() if wide > 1 else planes).reshape(wide, p, h // high, high, w // wide)
    rows = torch.split(columns, 1, 3) if high > 1 else (columns,)
    members = [member for row in rows for member in (torch.split(row, 1, 0) if wide > 1 else (row,))]
    return [member.reshape(p, h // high, w // wide) for member in members]
