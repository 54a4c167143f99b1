"""Predict whole CTs in the form that the launcher runs: from a trained task to NIfTI files.

A case goes through the gate of `verify`, is prepared by the plan that the network was trained with,
predicted by a sliding window, brought back to the CT's own voxels, cleaned if asked for, and
written with the CT's axes, affine and header. How the CT is stored makes no difference: all is done
in canonical axes (`touchstone_jax.io`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from touchstone_jax.clean import check_organs, clean, cleanings
from touchstone_jax.draw import draw_labels
from touchstone_jax.findings import ALLOWABLE
from touchstone_jax.infer import SlidingWindow, Zoom, check_options
from touchstone_jax.infer.sliding import Told
from touchstone_jax.inputs import open_inputs
from touchstone_jax.io import write
from touchstone_jax.io.geometry import Geometry, canonical
from touchstone_jax.io.label_values import label_counts
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.prepare import to_source_grid
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.resample import resample_labels
from touchstone_jax.prompts import Prompts
from touchstone_jax.verify.fingerprints import hash_of

RESAMPLINGS = ("linear", "nearest")
FIELD_MM = 512.0
"""CTs are no wider than this but rarely: the sliding window is compiled for it."""


class Predict:
    """Predict the CTs of a folder: ``<case>/predictions/<organ>.nii.gz`` and a label map.

    Args:
        data: folder of CTs in a layout of `touchstone_jax.layouts`, or of prepared cases.
        layout: of `touchstone_jax.layouts`, "prepared", or "auto".
        window: voxels (x, y, z) on the plan's spacing; None for the plan's patch.
        overlap: share of a window that the next one covers.
        mirror: axes (of 0, 1, 2) to mirror along, predictions averaged; only those that training
            mirrored along.
        batch: windows a call.
        space: devices of this process over which each window is split along x.
        accumulator_mib: see `touchstone_jax.infer.SlidingWindow`.
        resampling: "linear", the class with the largest interpolated share at each voxel of the
            CT, or "nearest", which is faster and leaves the steps of the plan's spacing.
        clean: organ, or "*", to the options of `touchstone_jax.clean.Cleaning`; nothing by default.
        masks: write a mask for each organ.
        picture: write ``prediction.png``: slices of the CT as the network saw it, and the organs.
        prompts: for promptable networks, a file or mapping as `touchstone_jax.prompts` says; None
            for what the network does unasked.
        zoom: for networks that are asked for organs, `touchstone_jax.infer.Zoom`: the CT made as
            small as a window shows where an organ is, and windows go there alone.
        allow: checks of `touchstone_jax.findings.ALLOWABLE` that are let pass.
        fingerprints: tell a changed CT by the "content" of its file, or by "stat".

    Raises:
        FileNotFoundError: no such folder, no case in it, or no file of prompts.
        ValueError: an unknown or illegal value, or an ambiguous data set.
    """

    places = ("data", "prompts")

    def __init__(
        self,
        data: str,
        *,
        layout: str = "auto",
        window: Sequence[int] | None = None,
        overlap: float = 0.5,
        mirror: Sequence[int] = (),
        batch: int = 1,
        space: int = 1,
        accumulator_mib: float = 1024,
        resampling: str = "linear",
        clean: Mapping[str, Mapping[str, Any]] | None = None,
        masks: bool = True,
        picture: bool = True,
        prompts: str | Mapping[str, Any] | None = None,
        zoom: bool = False,
        allow: Sequence[str] = (),
        fingerprints: str = "content",
    ) -> None:
        if resampling not in RESAMPLINGS:
            raise ValueError(f"resampling={resampling!r}; legal values: {', '.join(RESAMPLINGS)}")
        for check in allow:
            if check not in ALLOWABLE:
                raise ValueError(f"allow={check!r}; legal values: {', '.join(ALLOWABLE)}")
        self._how: dict[str, Any] = {
            "overlap": overlap,
            "mirror": tuple(mirror),
            "batch": batch,
            "space": space,
            "accumulator_mib": accumulator_mib,
        }
        self._window = None if window is None else tuple(window)
        check_options(self._window or (1, 1, 1), **self._how)
        self._resampling, self._allow = resampling, tuple(allow)
        if isinstance(prompts, str) and not Path(prompts).is_file():
            raise FileNotFoundError(f"prompts {prompts}: no such file")
        # Who zooms asks: in so many words, or for all organs.
        self._zoom, self._asked = zoom, {} if zoom and prompts is None else prompts
        self._masks, self._picture = masks, picture
        self._clean = cleanings(clean or {})
        self._inputs = open_inputs(data, layout, fingerprints)
        self._lock = threading.Lock()

    def cases(self) -> Sequence[str]:
        """The ids of the folder's cases, in order."""
        return self._inputs.cases()

    def fingerprint(self, case: str) -> str:
        """Hash of the case's CT, and of the prompts' file if there is one."""
        own = self._inputs.fingerprint(case)
        if not isinstance(self._asked, str):
            return own
        return hash_of([own, Path(self._asked).read_text(encoding="utf-8")])

    def restore(self, task: Any, state: Mapping[str, Any]) -> None:
        """Take the network: ``task.predictor(state)`` gives (network, plan, label scheme).

        The network is a function of `touchstone_jax.infer.SlidingWindow`, or a pair of features
        and head; the plan is a `Plan` or what `Plan.to_json` made of it.

        Raises:
            ValueError: network, plan, labels and options do not fit together.
        """
        network, plan, labels = task.predictor(state)
        self.plan = plan if isinstance(plan, Plan) else Plan.from_json(plan)
        self.scheme = scheme(labels)
        check_organs(self._clean, self.scheme.indices)
        network, head = network if isinstance(network, tuple) else (network, None)
        window = self._window or self.plan.patch
        told = self._restore_prompts(getattr(task, "prompts", {}), window)
        how = {"head": head, "cross_section": cross_section(self.plan), "told": told, **self._how}
        self.sliding = SlidingWindow(network, window, **how)
        if self.sliding.num_classes != self.scheme.num_classes:
            raise ValueError(
                f"the network has {self.sliding.num_classes} classes; the labels "
                f"{self.scheme.name} have {self.scheme.num_classes} with the background"
            )

    def _restore_prompts(
        self, kinds: Mapping[str, int | None], window: Sequence[int]
    ) -> Told | None:
        """What the network is told of a window; None if nothing."""
        self._prompts = None
        if self._zoom and "organs" not in kinds:
            raise ValueError("zoom=True: the network cannot be asked for organs; expected False")
        if self._asked is None:
            return None
        self._prompts = Prompts(self._asked, kinds, self.scheme)
        self._prompts.check_cases(self.cases())
        x, y, z = window
        return self._prompts.of_windows("", Geometry((x, y, z), np.eye(4)), window, window)

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Predict one case into ``folder``; windows, seconds of the network, ml of each organ.

        Raises:
            VolumeError: the first error that `verify` finds in the CT.
            ValueError: a prepared case of another plan, or logits that are not finite.
        """
        image, source = self._inputs.load(case, self.plan, self._allow)
        begin = time.monotonic()
        with self._lock:  # one accumulator at a time; other threads read and write meanwhile
            small, windows = self._labels(image, source, case)
        seconds = time.monotonic() - begin
        spacing = source.reoriented(canonical(source)).spacing_mm
        labels = self._back(small, source)
        labels, cleaned = clean(labels, spacing, self.scheme.indices, self._clean)
        write_prediction(folder, labels, source, self.scheme, masks=self._masks)
        if self._picture:
            hu = image * self.plan.std_hu + self.plan.mean_hu
            seen = resample_labels(labels, image.shape, order=0)
            drawn = draw_labels(hu, seen, self.plan.spacing_mm, self.scheme.indices)
            drawn.save(folder / "prediction.png")
        voxels = label_counts(labels, self.scheme.num_classes)
        ml = float(np.prod(spacing)) / 1000
        return {
            "windows": windows,
            "network_seconds": round(seconds, 3),
            "shape": " ".join(map(str, source.shape)),
            **{f"ml_{n}": float(voxels[i]) * ml for n, i in sorted(self.scheme.indices.items())},
            **{f"cleaned_{n}": c.removed + c.filled for n, c in cleaned.items()},
        }

    def _labels(
        self, image: Float32[np.ndarray, "x y z"], source: Geometry, case: str
    ) -> tuple[UInt8[np.ndarray, "x y z"], int]:
        """Labels of the prepared CT, and the number of windows that they took."""
        told, window = None, self.sliding.window
        if self._prompts is not None:
            told = self._prompts.of_windows(case, source, image.shape, window)
        if self._zoom:
            assert self._prompts is not None and told is not None  # who zooms asks
            small = self._prompts.of_windows(case, source, window, window)
            return Zoom(self.sliding).labels(image, case=case, told=told, small=small)
        found = self.sliding.labels(image, case=case, told=told)
        return found, self.sliding.count(image.shape)

    def _back(
        self, labels: UInt8[np.ndarray, "a b c"], source: Geometry
    ) -> UInt8[np.ndarray, "x y z"]:
        if self._resampling == "linear":
            return to_source_grid(labels, source, self.plan)
        return resample_labels(labels, source.reoriented(canonical(source)).shape, order=0)


def cross_section(plan: Plan) -> list[int]:
    """Largest voxels (x, y) of a CT on the plan's spacing that a sliding window is made for."""
    return [int(np.ceil(FIELD_MM / s)) for s in plan.spacing_mm[:2]]


def write_prediction(
    folder: str | Path,
    labels: UInt8[np.ndarray, "x y z"],
    geometry: Geometry,
    target: Scheme,
    *,
    masks: bool = True,
) -> None:
    """Write ``combined_labels.nii.gz`` and ``predictions/<organ>.nii.gz`` into a folder.

    Args:
        folder: of the case; exists.
        labels: uint8 (x, y, z), canonical axes, in the numbers of ``target``.
        geometry: the stored grid of the CT; its affine and header fields are written bit by bit.
        target: what the labels mean.
        masks: write the masks, too.

    Raises:
        ValueError: labels of another shape than the grid's.
    """
    folder = Path(folder)
    write(folder / "combined_labels.nii.gz", labels, geometry)
    if masks:
        (folder / "predictions").mkdir(exist_ok=True)
        for name, index in target.indices.items():
            write(folder / "predictions" / f"{name}.nii.gz", labels == index, geometry)
