"""The bytes of a NIfTI file: unpacking, and all that makes a file unreadable.

nibabel parses; it would also repair a broken header in silence, so it is asked before it does.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.findings import Finding, VolumeError, refusal
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.io.nifti_header import geometry_of

_HEADER_BYTES = 540  # of NIfTI-2, the longer of the two
_NEW_FILE = "export or download the file again"


def _start(path: Path, case: str, size: int | None = None) -> bytes:
    """The first ``size`` bytes (None: all) of what a file holds once unpacked."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return file.read(-1 if size is None else size)
            if size is None:
                return gzip.decompress(file.read())
            return gzip.GzipFile(fileobj=file).read(size)
    except FileNotFoundError as error:
        raise refusal(
            case, "missing_file", f"{path.name} is missing", f"expected it at {path}"
        ) from error
    except EOFError as error:
        raise refusal(
            case, "truncated", f"{path.name} is truncated: its gzip stream ends early", _NEW_FILE
        ) from error
    except (OSError, zlib.error) as error:
        raise refusal(case, "unreadable", f"{path.name}: {error}", _NEW_FILE) from error


def _header(data: bytes, path: Path, case: str) -> Any:
    """The header as it stands in the file: nibabel would repair it in silence."""
    import nibabel

    if not data:
        raise refusal(case, "unreadable", f"{path.name} is empty (0 bytes)", _NEW_FILE)
    for kind, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        if len(data) >= size and size in (
            int.from_bytes(data[:4], "little"),
            int.from_bytes(data[:4], "big"),
        ):
            header = kind.from_fileobj(io.BytesIO(data), check=False)
            if bytes(header["magic"].item())[:3] in (b"n+1", b"n+2"):
                return header
    shown = data[:8].decode("ascii", "replace")
    raise refusal(
        case, "unreadable", f"{path.name} is no single-file NIfTI: it begins {shown!r}", _NEW_FILE
    )


@contextlib.contextmanager
def _damage_told(path: Path, case: str) -> Iterator[None]:
    """Whatever a library stumbles over in a damaged header is one line about the file."""
    import nibabel

    kinds = (nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError)
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            yield
    except VolumeError:
        raise
    except (*kinds, ValueError, LookupError, TypeError, ArithmeticError) as error:
        told = f"{path.name} has a damaged header: {' '.join(str(error).split())}"
        raise refusal(case, "unreadable", told, _NEW_FILE) from error


def load(path: Path, case: str) -> tuple[Any, Geometry, tuple[Finding, ...]]:
    """The nibabel image with its bytes in memory, its grid and the warnings about its header.

    Raises:
        VolumeError: as `grid`; a truncated file; colour or complex voxels.
    """
    import nibabel

    data = _start(path, case)
    with _damage_told(path, case):
        header = _header(data, path, case)
        geometry, notes = geometry_of(header, path, case)
        dtype = _voxel_type(header, path, case)
        expected = int(header["vox_offset"]) + math.prod(geometry.shape) * dtype.itemsize
        if len(data) < expected:
            told = f"{path.name} is truncated: {len(data)} of {expected} bytes"
            raise refusal(case, "truncated", told, _NEW_FILE)
        two = isinstance(header, nibabel.Nifti2Header)
        # Not `from_bytes`: it would check the header again, and log every repair to stderr.
        voxels = nibabel.arrayproxy.ArrayProxy(io.BytesIO(data), header)
        image = (nibabel.Nifti2Image if two else nibabel.Nifti1Image)(voxels, None, header)
    return image, geometry, notes


def _voxel_type(header: Any, path: Path, case: str) -> np.dtype:
    import nibabel

    try:
        dtype = header.get_data_dtype()
    except (nibabel.spatialimages.HeaderDataError, KeyError):
        dtype = np.dtype("V0")
    if dtype.kind not in "iuf":
        code = int(header["datatype"])
        kind = {128: "RGB colours", 2304: "RGBA colours", 32: "complex numbers"}.get(code)
        raise refusal(
            case,
            "voxel_type",
            f"{path.name} holds {kind or 'values of an unknown type'} (NIfTI datatype {code}); "
            "expected one number a voxel",
            "export grey values (HU) or labels, not a rendering",
        )
    return dtype


def grid(path: Path, case: str) -> tuple[Geometry, tuple[Finding, ...]]:
    """The grid of a NIfTI file and the warnings about its header; reads a few hundred bytes.

    Raises:
        VolumeError: no such file, no NIfTI, not 3-D, or a header that gives no usable grid.
    """
    data = _start(path, case, _HEADER_BYTES)
    with _damage_told(path, case):
        return geometry_of(_header(data, path, case), path, case)
