"""The bytes of a NIfTI file: unpacking, and all that makes a file unreadable.

nibabel parses; it would also repair a broken header in silence, so it is asked before it does.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.findings import Finding, VolumeError, refusal
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.io.nifti_header import geometry_of

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2, the longer of the two
_VOXELS_FROM = 2**24  # bytes; notes of other programs stand before the voxels
_MOST_VOXELS = 2**31  # 512 × 512 × 8192; float32 of them fill 8 GiB
_SLACK = 2**20  # bytes; some programs leave a few behind the voxels
_NEW_FILE = "export or download the file again"


@contextlib.contextmanager
def _reading(path: Path, case: str) -> Iterator[None]:
    """Whatever can go wrong with the file itself is one line about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise refusal(
            case, "missing_file", f"{path.name} is missing", f"expected it at {path}"
        ) from error
    except EOFError as error:
        raise refusal(
            case, "truncated", f"{path.name} is truncated: its gzip stream ends early", _NEW_FILE
        ) from error
    except (OSError, zlib.error, MemoryError) as error:
        raise refusal(case, "unreadable", f"{path.name}: {_line(error)}", _NEW_FILE) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _start(path: Path, case: str, size: int) -> bytes:
    """The first ``size`` bytes of what a file holds once unpacked."""
    with _reading(path, case), path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        return gzip.GzipFile(fileobj=file).read(size) if packed else file.read(size)


def _whole(path: Path, case: str, size: int) -> bytes:
    """What a file holds once unpacked, checksums compared, if it is ``size`` bytes or hardly more.

    A few MB can unpack to any number of GB: what the header promises is the limit.
    """
    most = size + _SLACK
    with _reading(path, case), path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        here = os.fstat(file.fileno()).st_size  # read(n) takes n bytes of memory at once
        data = _unpacked(file.read(), most) if packed else file.read(min(most, here))
    if len(data) < size:
        told = f"{path.name} is truncated: {len(data)} of {size} bytes"
        raise refusal(case, "truncated", told, _NEW_FILE)
    if len(data) == most:
        told = f"{path.name} holds far more than the {size} bytes that its header promises"
        raise refusal(case, "unreadable", told, _NEW_FILE)
    return data


def _unpacked(packed: bytes, most: int) -> bytes:
    """At most so many bytes out of a gzip file of one member or several.

    Raises:
        EOFError: it ends early.
        zlib.error: it is damaged.
    """
    parts = []
    while packed and most:
        stream = zlib.decompressobj(wbits=31)
        parts.append(stream.decompress(packed, most))
        most -= len(parts[-1])
        if most and not stream.eof:
            raise EOFError
        packed = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


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
        told = f"{path.name} has a damaged header: {_line(error)}"
        raise refusal(case, "unreadable", told, _NEW_FILE) from error


def load(path: Path, case: str) -> tuple[Any, Geometry, tuple[Finding, ...]]:
    """The nibabel image with its bytes in memory, its grid and the warnings about its header.

    Raises:
        VolumeError: as `grid`; a truncated file; colour or complex voxels.
    """
    import nibabel

    start = _start(path, case, _HEADER_BYTES)
    with _damage_told(path, case):
        header = _header(start, path, case)
        geometry, notes = geometry_of(header, path, case)
        size = _size(header, geometry.shape, _voxel_type(header, path, case), path, case)
        data = _whole(path, case, size)
        two = isinstance(header, nibabel.Nifti2Header)
        # Not `from_bytes`: it would check the header again, and log every repair to stderr.
        voxels = nibabel.arrayproxy.ArrayProxy(io.BytesIO(data), header)
        image = (nibabel.Nifti2Image if two else nibabel.Nifti1Image)(voxels, None, header)
    return image, geometry, notes


def _size(header: Any, shape: tuple[int, ...], dtype: np.dtype, path: Path, case: str) -> int:
    """Bytes that the header promises, before anything of that size is allocated."""
    first, voxels = int(header["vox_offset"]), math.prod(shape)
    least = int(header["sizeof_hdr"]) + 4  # four bytes say whether notes follow
    if not least <= first <= _VOXELS_FROM or voxels > _MOST_VOXELS:
        told = (
            f"{path.name}: its header promises {voxels} voxels of shape {shape} from byte {first} "
            f"on; expected at most {_MOST_VOXELS} from {least}..{_VOXELS_FROM} on"
        )
        raise refusal(case, "unreadable", told, _NEW_FILE)
    return first + voxels * dtype.itemsize


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
