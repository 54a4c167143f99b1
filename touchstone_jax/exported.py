"""Whole CTs by an exported network: the sliding window around what launch's `export` wrote.

Of this package only reading, preparing and sliding windows are used: no network, no training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Real, UInt8

from touchstone_jax.infer import SlidingWindow
from touchstone_jax.io import Volume, read_ct
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.predict import cross_section
from touchstone_jax.prepare import prepare_image, to_source_grid
from touchstone_jax.prepare.plan import Plan

Network = Callable[[Float[Array, "b x y z 1"]], Float[Array, "b x y z k"]]
OPTIONS = ("overlap", "mirror", "batch", "accumulator_mib")


class Segment:
    """An exported segmenter made ready for whole CTs.

    ``Segment(model.load(folder), folder)(ct)`` is what `Predict` of the same checkpoint says, and
    ``Predict(data).restore(segment, None)`` predicts a folder by it.

    Attributes:
        plan: spacing, intensities and patch; a window is one patch.
        scheme: what the labels mean.
        sliding: the sliding window.
    """

    def __init__(self, network: Network, folder: str | Path, **options: Any) -> None:
        """Trace the network.

        Args:
            network: what ``load`` of the folder's model.py returned.
            folder: that `export` wrote; its export.json has the plan.
            **options: "overlap", "mirror", "batch" and "accumulator_mib" of `SlidingWindow`; by
                default those of the card's ``config.jobs.predict``.

        Raises:
            FileNotFoundError: the folder holds no export.json.
            ValueError: it is of no segmenter, or an unknown or illegal option.
        """
        file = Path(folder) / "export.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: no folder of an exported network")
        about = json.loads(file.read_text(encoding="utf-8"))
        self.plan = Plan.from_json(about["about"].get("details", {}).get("Plan"), str(file))
        self.scheme, self.network = scheme(self.plan.labels), network
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise ValueError(f"option {unknown[0]!r}; legal: {', '.join(OPTIONS)}")
        card = about["config"].get("jobs", {}).get("predict", {})
        kept = {name: card[name] for name in OPTIONS if name in card}
        how = {"cross_section": cross_section(self.plan), **kept, **options}
        self.sliding = SlidingWindow(network, self.plan.patch, **how)

    def predictor(self, state: None = None) -> tuple[Network, Plan, str]:
        """(network, plan, label scheme), for `touchstone_jax.predict.Predict.restore`."""
        return self.network, self.plan, self.scheme.name

    def __call__(
        self,
        ct: str | Path | Volume | Real[np.ndarray, "x y z"],
        spacing_mm: Sequence[float] | None = None,
    ) -> UInt8[np.ndarray, "x y z"]:
        """The labels of each voxel of a CT, uint8 (x, y, z) in canonical axes (RAS+).

        Args:
            ct: a NIfTI file, what `touchstone_jax.io.read_ct` made of one, or an array in HU with
                x to the right of the patient, y to the front, z to the head.
            spacing_mm: (x, y, z), of an array; the others bring theirs.

        Raises:
            VolumeError: the file is no readable CT.
            ValueError: an array without spacing or not finite, or logits that are not finite.
        """
        volume = _volume(ct, spacing_mm)
        # Through half precision, as `predict` does: the same bits as in training.
        image = prepare_image(volume, self.plan).astype(np.float16).astype(np.float32)
        return to_source_grid(self.sliding.labels(image), volume.geometry, self.plan)


def _volume(ct: Any, spacing_mm: Sequence[float] | None) -> Volume:
    if isinstance(ct, np.ndarray):
        spacing = np.asarray(() if spacing_mm is None else spacing_mm, np.float64)
        sound = spacing.shape == (3,) and bool((np.isfinite(spacing) & (spacing > 0)).all())
        if not sound or ct.ndim != 3:
            raise ValueError(
                f"an array {ct.shape} with spacing_mm={spacing_mm}: expected voxels (x, y, z) and "
                "three numbers above 0"
            )
        affine = np.diag([*spacing, 1.0])
        return Volume(np.asarray(ct, np.float32), Geometry(ct.shape, affine))
    if spacing_mm is not None:
        raise ValueError("spacing_mm is for arrays; a file has its own")
    return ct if isinstance(ct, Volume) else read_ct(ct, case=Path(ct).name)
