"""One label map from masks that may overlap.

Masks of a case are drawn independently and may overlap. A voxel claimed by several
classes goes to the *smallest* of them (by the voxels of its whole mask; of equals, to the lower
label): a gall bladder bitten out by a liver would lose a large share of itself, the liver hardly
any. Other policies: "first" and "last" (by label) and "refuse". Every overlap is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from touchstone_jax.findings import refusal
from touchstone_jax.labels.scheme import Scheme

OVERLAPS = ("smallest", "first", "last", "refuse")


@dataclass
class Report:
    """What happened on the way to a label map.

    Attributes:
        voxels: class of the target to the voxels of its own mask, before overlaps were decided;
            only classes that were there to read.
        overlaps: "a & b" to the voxels that both classes claimed.
        dropped: class of the source to voxels that no side of a pair got.
        ignored: classes of the source that the target has no place for.
        missing: classes of the target that the source does not annotate at all.
    """

    voxels: dict[str, int] = field(default_factory=dict)
    overlaps: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Painting:
    """Masks painted one after the other into one label map.

    Attributes:
        labels: uint8 (x, y, z) label map of ``target``.
        report: what was painted and what overlapped.
    """

    def __init__(
        self, shape: tuple[int, int, int], target: Scheme, overlap: str, case: str
    ) -> None:
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap={overlap!r}; legal values: {', '.join(OVERLAPS)}")
        if target.num_classes > 256:
            raise ValueError(f"{target.name} has {target.num_classes} classes; at most 256 fit")
        self.labels = np.zeros(shape, np.uint8, order="F")
        self.target, self.overlap, self.case = target, overlap, case
        self.report = Report()
        self.sizes = np.zeros(256, np.int64)

    def add(self, name: str, mask: Bool[np.ndarray, "x y z"]) -> None:
        """Paint the mask of a class of the target; again for a further part of it.

        Raises:
            VolumeError: voxels of another class under "refuse".
        """
        index = self.target.indices[name]
        # Of a merged class (lung lobes) the parts do not compete with each other.
        # Transposed, volumes lie in C order, which picking by a mask needs to be fast.
        labels, mask = self.labels.T, mask.T
        size = int(np.count_nonzero(mask & (labels != index)))
        self.report.voxels[name] = self.report.voxels.get(name, 0) + size
        self.sizes[index] += size
        held = labels[mask]
        taken = np.bincount(held, minlength=256)
        taken[[0, index]] = 0
        for other in np.flatnonzero(taken):
            self._count(name, int(other), int(taken[other]))
        # One table of 256 verdicts instead of a comparison a voxel.
        yields = np.array([self._wins(index, other) for other in range(256)])
        labels[mask] = np.where(yields[held], np.uint8(index), held)

    def _wins(self, index: int, other: int) -> bool:
        if other in (0, index):
            return True
        if self.overlap == "smallest":
            return (self.sizes[index], index) < (self.sizes[other], other)
        return index < other if self.overlap == "first" else index > other

    def _count(self, name: str, other: int, voxels: int) -> None:
        names = {index: own for own, index in self.target.indices.items()}
        pair = " & ".join(sorted((name, names[other])))
        if self.overlap == "refuse":
            raise refusal(
                self.case,
                "overlap",
                f"{pair} share {voxels} voxels; expected none",
                "choose a policy: overlap='smallest', 'first' or 'last'",
            )
        self.report.overlaps[pair] = self.report.overlaps.get(pair, 0) + voxels
