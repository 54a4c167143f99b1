"""NIfTI files whose bytes were drawn: read as they are, or one line that names the file.

Sizes in a header are bounded before memory is taken, so no file needs more than it holds.
"""

import gzip
import itertools
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from touchstone_jax import io
from touchstone_jax.findings import VolumeError
from touchstone_jax.io.geometry import Geometry, canonical

DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER = 40, 70, 72, 76, 108, 112, 116
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344
"""Offsets in a NIfTI-1 header (nifti1.h)."""

SHAPE = (4, 3, 5)
WHOLE = nibabel.Nifti1Image(
    np.arange(60, dtype=np.int16).reshape(SHAPE), np.diag([2.0, 2.5, 3.0, 1.0])
).to_bytes()
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, np.inf, -np.inf, np.nan]),
    st.floats(width=32),
)
SHORTS = st.one_of(
    st.sampled_from([0, 1, -1, 3, 4, 7, 32767, -32768]), st.integers(-(2**15), 2**15 - 1)
)
FIELDS = st.one_of(
    st.tuples(st.sampled_from(range(DIM, DIM + 16, 2)), st.just("<h"), SHORTS),
    st.tuples(st.sampled_from([DATATYPE, BITPIX, QFORM_CODE, SFORM_CODE]), st.just("<h"), SHORTS),
    st.tuples(
        st.sampled_from(
            [
                *(VOX_OFFSET, SLOPE, INTER, *range(PIXDIM, PIXDIM + 32, 4)),
                *(*range(QUATERN_B, QUATERN_B + 24, 4), *range(SROW_X, SROW_X + 48, 4)),
            ]
        ),
        st.just("<f"),
        FLOATS,
    ),
    st.tuples(st.integers(0, 351), st.just("B"), st.integers(0, 255)),
)
TYPES = {
    **dict.fromkeys((2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280), "numbers"),
    **dict.fromkeys((0, 1, 32, 128, 255, 1536, 1792, 2304, -4, 9999), "others"),
}


def read(path: Path) -> io.Volume | str:
    """The volume, or the refusal's text; its labels are tried as well."""
    try:
        volume = io.read_ct(path, case="c1")
        assert np.isfinite(volume.array).all() and volume.array.dtype == np.float32
        io.read_labels(path, case="c1", like=volume.geometry)
    except VolumeError as error:
        told = str(error)
        assert told.startswith("c1: ") and "\n" not in told and path.name in told, told
        return told
    return volume


@given(st.lists(FIELDS, min_size=1, max_size=3), st.booleans())
@example([(VOX_OFFSET, "<f", 0.0)], True)
@example([(VOX_OFFSET, "<f", 1e30)], True)
@example([(SLOPE, "<f", 1.0), (INTER, "<f", np.nan)], False)
@example([(SLOPE, "<f", np.inf)], False)
@example([(SLOPE, "<f", 3e38), (INTER, "<f", 3e38)], False)
def test_a_header_of_any_values(tmp_path: Path, changes: list, packed: bool) -> None:
    raw = bytearray(WHOLE)
    for place, form, value in changes:
        struct.pack_into(form, raw, place, value)
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw), 1) if packed else bytes(raw))
    read(path)


@pytest.mark.parametrize(("code", "kind"), TYPES.items())
def test_every_datatype_code(code: int, kind: str, tmp_path: Path) -> None:
    raw = bytearray(WHOLE + bytes(60 * 14))
    struct.pack_into("<h", raw, DATATYPE, code)
    (tmp_path / "ct.nii").write_bytes(bytes(raw))
    try:
        io.read_ct(tmp_path / "ct.nii", case="c1")
    except VolumeError as error:  # int16 read as float may well be NaN
        assert error.finding.check == ("voxel_type" if kind == "others" else "nonfinite")
    else:
        assert kind == "numbers"


def test_voxels_before_the_end_of_the_header_are_refused(tmp_path: Path) -> None:
    for value in (0.0, 348.0, -352.0, np.nan, np.inf, 1e30):
        raw = bytearray(WHOLE)
        struct.pack_into("<f", raw, VOX_OFFSET, value)
        (tmp_path / "ct.nii").write_bytes(bytes(raw))
        told = read(tmp_path / "ct.nii")
        assert "its header promises 60 voxels" in told or "has a damaged header" in told


# ---------------------------------------------------------------- damage


@given(st.integers(0, 10**6), st.booleans())
def test_a_file_cut_anywhere(tmp_path: Path, at: int, packed: bool) -> None:
    whole = gzip.compress(WHOLE, 6) if packed else WHOLE
    (tmp_path / "ct.nii.gz").write_bytes(whole[: at % len(whole)])
    assert isinstance(read(tmp_path / "ct.nii.gz"), str)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_gzip_stream(tmp_path: Path, at: int, flip: int) -> None:
    whole = bytearray(gzip.compress(WHOLE, 6, mtime=0))
    at %= len(whole)
    whole[at] ^= flip
    (tmp_path / "ct.nii.gz").write_bytes(bytes(whole))
    found = read(tmp_path / "ct.nii.gz")
    # A few bits, such as the time and those behind a code's end, are no content.
    if not isinstance(found, str):
        np.testing.assert_array_equal(found.array, np.arange(60).reshape(SHAPE))


def test_members_and_padding_of_gzip_are_read(tmp_path: Path) -> None:
    parts = [gzip.compress(WHOLE[:400]), gzip.compress(WHOLE[400:]), bytes(512)]
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(parts))
    volume = read(tmp_path / "ct.nii.gz")
    assert not isinstance(volume, str) and volume.array[3, 2, 4] == 59
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(parts[:2]) + b"something else")
    assert isinstance(read(tmp_path / "ct.nii.gz"), str)


def _claims(shape: tuple[int, ...], code: int = 4) -> bytes:
    raw = bytearray(WHOLE[:352])
    struct.pack_into("<8h", raw, DIM, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<h", raw, DATATYPE, code)
    return bytes(raw)


def _zeros(head: bytes, mib: int) -> bytes:
    """A gzip stream of ``head`` and so many MiB of zeros."""
    packer, piece = zlib.compressobj(1, wbits=31), bytes(2**20)
    return b"".join([packer.compress(head), *(packer.compress(piece) for _ in range(mib)),
                     packer.flush()])  # fmt: skip


BOMBS = {
    "huge": (_claims((32767, 32767, 32767)), 1, "promises 35181150961663 voxels"),
    "large": (_claims((1000, 1000, 1000), 64), 1, "is truncated: 1048928 of 8000000352 bytes"),
    "long": (WHOLE, 64, "holds far more than the 472 bytes"),
    "many axes": (_claims((4, 3, 5, 32767, 32767)), 64, "5-D"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("packed", [True, False])
def test_sizes_are_bounded_before_memory_is_taken(name: str, packed: bool, tmp_path: Path) -> None:
    head, mib, said = BOMBS[name]
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(_zeros(head, mib) if packed else head + bytes(mib * 2**20))
    tracemalloc.start()
    told = read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(told, str) and said in told, told
    assert most < 16 * 2**20, f"{most} bytes for a file of {path.stat().st_size}"


# ---------------------------------------------------------------- and back


@st.composite
def grids(draw: st.DrawFn) -> Geometry:
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    axes = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    signs, sizes = ([draw(one) for _ in range(3)] for one in (
        st.sampled_from([-1.0, 1.0]), st.floats(0.125, 10, width=32)))  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * np.multiply(signs, sizes)
    affine[:3, 3] = [draw(st.floats(-1000, 1000, width=32)) for _ in range(3)]
    return Geometry(shape, affine)


@given(
    grids(),
    st.sampled_from(["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "?"]),
    st.sampled_from([".nii", ".nii.gz"]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_written_is_read_back(
    tmp_path: Path, grid: Geometry, dtype: str, suffix: str, seed: int
) -> None:
    shape = tuple(grid.shape[axis] for axis in canonical(grid).axes)
    array = np.random.default_rng(seed).integers(0, 2 if dtype == "?" else 128, shape).astype(dtype)
    path = tmp_path / f"x{suffix}"
    io.write(path, array, grid)
    volume = io.read_ct(path, case="c1")
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))
    assert volume.geometry.shape == grid.shape
    np.testing.assert_allclose(volume.geometry.affine, grid.affine, rtol=1e-6, atol=1e-6)
    labels, notes = io.read_labels(path, case="c1", like=volume.geometry)
    np.testing.assert_array_equal(labels, array)
    assert notes == ()


def test_an_axis_longer_than_the_format_allows(tmp_path: Path) -> None:
    grid = Geometry((40000, 1, 1), np.eye(4))
    with pytest.raises(ValueError, match=r"x.nii: NIfTI-1 cannot store the shape \(40000, 1, 1\)"):
        io.write(tmp_path / "x.nii", np.zeros(grid.shape, np.uint8), grid)
