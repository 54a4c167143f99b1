"""Kernels and strides of a U-Net from spacing and patch: nnU-Net's rules (Isensee et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from touchstone_jax.layers import Triple, triple

SMALLEST_MAP = 4
"""No axis is halved to fewer voxels than this at the bottleneck."""


class Topology(NamedTuple):
    """The stages of an encoder, the finest first.

    Attributes:
        kernels: kernel (x, y, z) of each stage.
        strides: by how much each stage first shrinks (x, y, z); 1s for the first.
    """

    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]


def topology(
    spacing_mm: Sequence[float], patch: Sequence[int], stages: int | None = None
) -> Topology:
    """Stages such that coarse axes are left alone until the others are as coarse.

    An axis is halved if its spacing is below twice the finest of those that can still be halved,
    and its kernel becomes 3 once its spacing is below twice the finest of all; until then it is 1.
    The last stage has kernels of 3 on all axes.

    Args:
        spacing_mm: of the patch along (x, y, z), in mm.
        patch: voxels (x, y, z).
        stages: at most so many, at least 1; None for as many as the patch has room for.
    """
    spacing, sizes = list(map(float, spacing_mm)), list(patch)
    kernel, kernels = [1, 1, 1], list[Triple]()
    strides: list[Triple] = [(1, 1, 1)]
    while stages is None or len(strides) < stages:
        room = [axis for axis in range(3) if sizes[axis] >= 2 * SMALLEST_MAP]
        if not room:
            break
        finest = min(spacing[axis] for axis in room)
        halved = [axis for axis in room if spacing[axis] < 2 * finest]
        # Of a single axis nnU-Net asks for more room.
        if len(halved) == 1 and sizes[halved[0]] < 3 * SMALLEST_MAP:
            break
        fine = [s < 2 * min(spacing) for s in spacing]
        kernel = [3 if k == 3 or f else 1 for k, f in zip(kernel, fine, strict=True)]
        kernels.append(triple(kernel, "kernel"))
        strides.append(triple([2 if axis in halved else 1 for axis in range(3)], "stride"))
        for axis in halved:
            spacing[axis] *= 2
            sizes[axis] = -(-sizes[axis] // 2)
    return Topology((*kernels, (3, 3, 3)), tuple(strides))
