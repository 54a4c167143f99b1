"""The format of a prepared case: two chunked, compressed, checksummed arrays and a description.

| file | content |
| --- | --- |
| image/ | zarr v3, float16 (x, y, z): normalised intensities on the plan's spacing |
| labels/ | zarr v3, uint8 (x, y, z) of the same shape |
| foreground.npy | int16 (n, 4): label and voxel index of sampled labelled voxels, by label |
| meta.json | where it came from, and the way back to the CT's grid |

Each array is one file of 32³ chunks (zstd, CRC-32C), so that a patch reads only what it touches and
a damaged chunk is an error instead of noise. Equal input gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Int16, UInt8

from touchstone_jax.io.geometry import Geometry

FORMAT = 1
CHUNK = 32
_AGAIN = "delete the case's folder and prepare again"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared case, opened; voxels are read when they are asked for.

    Attributes:
        case: its id.
        image: tensorstore of float16 (x, y, z); ``image[a:b, c:d, e:f].read().result()`` reads.
        labels: tensorstore of uint8 (x, y, z).
        foreground: int16 (n, 4), rows of label, x, y, z sorted by label.
        meta: the content of meta.json.
    """

    case: str
    image: Any
    labels: Any
    foreground: Int16[np.ndarray, "n 4"]
    meta: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z)."""
        return tuple(self.meta["shape"])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing along (x, y, z), in mm."""
        return tuple(self.meta["spacing_mm"])

    @property
    def source(self) -> Geometry:
        """The grid of the CT as it was stored."""
        return Geometry.from_json(self.meta["geometry"])

    def voxels_of(self, label: int) -> Int16[np.ndarray, "n 3"]:
        """Sampled voxels (n, 3) of a label; none where the case has none."""
        first, last = np.searchsorted(self.foreground[:, 0], [label, label + 1])
        return self.foreground[first:last, 1:]


def write_prepared(
    folder: str | Path,
    image: Float16[np.ndarray, "x y z"],
    labels: UInt8[np.ndarray, "x y z"],
    foreground: Int16[np.ndarray, "n 4"],
    meta: Mapping[str, Any],
) -> None:
    """Write the files of one case into an existing folder; meta.json, which makes it whole, last.

    Raises:
        ValueError: arrays of other types, or of different shapes.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    if image.dtype != np.float16 or labels.dtype != np.uint8 or image.shape != labels.shape:
        raise ValueError(
            f"{folder}: image is {image.dtype} {image.shape}, labels {labels.dtype} "
            f"{labels.shape}; expected float16 and uint8 of one shape"
        )
    for name, array in (("image", image), ("labels", labels)):
        _store(folder / name, array.shape, array.dtype.name).write(array).result()
    np.save(folder / "foreground.npy", foreground, allow_pickle=False)
    text = json.dumps({**meta, "format": FORMAT}, indent=2, allow_nan=False, sort_keys=True)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def open_prepared(folder: str | Path) -> Prepared:
    """Open a case that `write_prepared` wrote; its id is the folder's name.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: another format, or files that do not fit together.
    """
    folder = Path(folder)
    case = folder.name
    meta = _meta(folder)
    try:
        image, labels = (_open(folder / name) for name in ("image", "labels"))
    except ValueError as error:
        raise ValueError(f"{case}: {str(error).splitlines()[0]}") from error
    shape = tuple(meta["shape"])
    if image.shape != shape or labels.shape != shape:
        raise ValueError(
            f"{case}: image has shape {image.shape}, labels {labels.shape}, meta.json says {shape}"
        )
    foreground = _foreground(folder)
    for name, needed in (("image", True), ("labels", len(foreground) > 0)):
        # Zeros alone are not stored; where the file of other values is gone, zeros would be read.
        if needed and not (chunks := folder / name / "c" / "0" / "0" / "0").is_file():
            raise FileNotFoundError(f"{case}: {chunks} is missing; {_AGAIN}")
    return Prepared(case, image, labels, foreground, meta)


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder.name}: no prepared case: {path} is missing")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found = meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder.name}: {path} cannot be read: {error!r}") from error
    if found != FORMAT:
        raise ValueError(f"{folder.name}: format {found!r}, expected {FORMAT}: prepare it again")
    return meta


def _foreground(folder: Path) -> Int16[np.ndarray, "n 4"]:
    path = folder / "foreground.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{folder.name}: {path} is missing; {_AGAIN}")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:  # the last: a header that lies
        raise ValueError(f"{folder.name}: {path} cannot be read; {_AGAIN}") from error
    if found.dtype != np.int16 or found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"{folder.name}: {path} is {found.dtype} {found.shape}; expected (n, 4)")
    return found


def _store(path: Path, shape: tuple[int, ...], dtype: str) -> Any:
    import tensorstore

    whole = [-(-n // CHUNK) * CHUNK for n in shape]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    packing = [little, {"name": "zstd", "configuration": {"level": 3}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [CHUNK] * 3,
        "codecs": packing,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.resolve())},
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": whole}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["x", "y", "z"],
        },
    }
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def _open(path: Path) -> Any:
    import tensorstore

    kvstore = {"driver": "file", "path": str(path.resolve())}
    if not (path / "zarr.json").is_file():
        raise FileNotFoundError(f"{path.parent.name}: {path / 'zarr.json'} is missing")
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
