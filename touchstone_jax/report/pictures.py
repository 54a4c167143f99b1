"""Pictures of lesions: the slice of the diameters, with both drawn, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Real

from touchstone_jax.draw import grey
from touchstone_jax.io import Volume
from touchstone_jax.report.schema import Lesion, Report, tenth

if TYPE_CHECKING:
    from PIL import Image

MARGIN_MM = 40.0
LEAST_SIDE = 256
_LONGEST, _ACROSS, _TEXT = (255, 80, 60), (80, 200, 255), (255, 255, 0)


def draw_lesions(ct: Volume, report: Report, folder: Path) -> list[Path]:
    """One PNG for each lesion, ``<organ>_<kind>_<number>.png``; their paths.

    The patient's right is on the left of the picture and the front at the top, as radiologists
    look at it; pixels are square in mm.

    Args:
        ct: of the case.
        report: its lesions.
        folder: exists.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = []
    for organ in report.organs:
        for lesion in organ.lesions:
            name = f"{organ.name}_{lesion.kind.replace(' ', '_')}_{lesion.number}.png"
            draw_lesion(ct.array, ct.spacing_mm, organ.name, lesion).save(folder / name)
            paths.append(folder / name)
    return paths


def draw_lesion(
    hu: Real[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    organ: str,
    lesion: Lesion,
) -> Image.Image:
    """A PIL image of the lesion's slice around it.

    Args:
        hu: (x, y, z), canonical axes.
        spacing_mm: of the CT.
        organ: its name, for the caption.
        lesion: with diameters in voxels of the CT.
    """
    from PIL import Image, ImageDraw

    z = min(max(lesion.slice_index, 0), hu.shape[2] - 1)
    low, high = _box(hu.shape, spacing_mm, lesion)
    shown = grey(hu[low[0] : high[0], low[1] : high[1], z])
    wide, tall = ((high[k] - low[k]) * spacing_mm[k] for k in range(2))
    scale = max(LEAST_SIDE / min(wide, tall), 1.0)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    # Rows of a picture run down and x runs to the patient's right: both axes are turned over.
    image = Image.fromarray(np.ascontiguousarray(shown.T[::-1, ::-1])).convert("RGB")
    image = image.resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for ends, colour in ((lesion.ends, _LONGEST), (lesion.across, _ACROSS)):
        pen.line([_pixel(p, low, high, size) for p in ends], fill=colour, width=2)
    first, second = tenth(lesion.longest_mm / 10), tenth(lesion.perpendicular_mm / 10)
    caption = f"{organ} {lesion.kind} {lesion.number}: {first} x {second} cm, image {z}"
    pen.text((4, 4), caption, fill=_TEXT)
    return image


def _box(shape: tuple[int, ...], spacing_mm: tuple[float, ...], lesion: Lesion):
    margin = [int(np.ceil(MARGIN_MM / spacing_mm[k])) for k in range(2)]
    low = [max(0, lesion.start[k] - margin[k]) for k in range(2)]
    high = [min(shape[k], max(lesion.stop[k], lesion.start[k] + 1) + margin[k]) for k in range(2)]
    return low, high


def _pixel(point: tuple[float, float], low, high, size) -> tuple[float, float]:
    """Where a voxel's centre comes to lie in the picture."""
    share = [(point[k] + 0.5 - low[k]) / (high[k] - low[k]) for k in range(2)]
    return (1 - share[0]) * size[0], (1 - share[1]) * size[1]
