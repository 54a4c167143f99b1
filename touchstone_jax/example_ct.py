"""A real abdominal CT with nine organs, taken out of a Python package.

The source distribution of TotalSegmentator 2.18.0 (PyPI, Apache-2.0; Wasserthal et al. 2023) tests
itself on a CT of abdomen and pelvis, 122 × 101 × 112 voxels of 3 mm, with the label map that its
model gave. The labels are therefore a model's, not a radiologist's.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from touchstone_jax.io import read_ct, read_labels
from touchstone_jax.labels import map_labels
from touchstone_jax.layouts.abdomenatlas import write_case

CASE = "TS_full_3mm"
_CT = "tests/reference_files/example_ct.nii.gz"
_LABELS = "tests/reference_files/example_seg_fast_force_split.nii.gz"
_MAX_BYTES = 2**26


def lay_out(archive: Path, folder: Path) -> None:
    """Write the CT of TotalSegmentator's source distribution as a data set of one case.

    The layout is AbdomenAtlas': ``folder/TS_full_3mm/ct.nii.gz``, ``combined_labels.nii.gz`` and
    ``segmentations/<organ>.nii.gz``; the licence lies beside it. Only the three files that are
    needed are read out of the archive, as bytes: none of its paths is ever followed.

    Args:
        archive: totalsegmentator-2.18.0.tar.gz.
        folder: an existing folder.

    Raises:
        ValueError: not a gzipped tar, or a file is not in it, is no plain file or is too large.
        VolumeError: what lies there is no CT with a label map.
    """
    archive, folder = Path(archive), Path(folder)
    with _opened(archive) as members:
        ct_bytes = _bytes(members, archive, _CT)
        label_bytes = _bytes(members, archive, _LABELS)
        licence = _bytes(members, archive, "LICENSE")
    with tempfile.TemporaryDirectory() as place:
        ct_file, label_file = Path(place) / "ct.nii.gz", Path(place) / "labels.nii.gz"
        ct_file.write_bytes(ct_bytes)
        label_file.write_bytes(label_bytes)
        ct = read_ct(ct_file, case=CASE)
        found, _ = read_labels(label_file, case=CASE, like=ct.geometry)
    labels, _ = map_labels(found, "totalsegmentator_v2", "abdomenatlas_1.0", case=CASE)
    hu = np.clip(np.rint(ct.array), -32768, 32767).astype(np.int16)
    write_case(folder / CASE, hu, labels, ct.geometry)
    (folder / "LICENSE.totalsegmentator-Apache-2.0.txt").write_bytes(licence)


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, "r:gz") as members:
            yield members
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive}: not a readable .tar.gz: {error}") from error


def _bytes(members: tarfile.TarFile, archive: Path, inner: str) -> bytes:
    """The content of the one plain file at ``inner`` below the archive's top folder."""
    found = []
    for member in members:
        if PurePosixPath(member.name).parts[1:] == PurePosixPath(inner).parts:
            if member.size > _MAX_BYTES:  # told before the archive is unpacked any further
                size = f"{inner} has {member.size} bytes; expected ≤ {_MAX_BYTES}"
                raise ValueError(f"{archive}: {size}")
            found.append(member)
    if len(found) != 1 or not found[0].isfile():
        raise ValueError(f"{archive}: expected one plain file {inner}, found {len(found)}")
    file = members.extractfile(found[0])
    assert file is not None  # it is a plain file
    return file.read()
