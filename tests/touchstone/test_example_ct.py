"""The example CT out of an archive: what is laid out, and archives that are not what they say."""

import gzip
import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from touchstone_jax.example_ct import CASE, lay_out
from touchstone_jax.findings import VolumeError
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts import discover
from touchstone_jax.phantom import phantom
from touchstone_jax.verify import verify

TOP = "totalsegmentator-2.18.0"
CT = f"{TOP}/tests/reference_files/example_ct.nii.gz"
LABELS = f"{TOP}/tests/reference_files/example_seg_fast_force_split.nii.gz"


@pytest.fixture(scope="module")
def made():
    return phantom(1, shape=(24, 22, 20), spacing_mm=(3.0, 3.0, 3.0))


@pytest.fixture
def members(made) -> dict[str, bytes]:
    """A small archive's members: a phantom in TotalSegmentator's numbers."""
    total, nine = scheme("totalsegmentator_v2"), scheme("abdomenatlas_1.0")
    theirs = {"gall_bladder": "gallbladder", "postcava": "inferior_vena_cava"}
    table = [0, *(total.indices[theirs.get(name, name)] for name in nine.classes)]
    labels = np.array(table, np.uint8)[made.labels]
    labels[0, 0, 0] = 90  # an organ that is not among the nine
    files = {CT: made.ct.astype(np.int32), LABELS: labels}
    images = {n: nibabel.Nifti1Image(a, made.geometry.affine) for n, a in files.items()}
    packed = {name: image.to_bytes() for name, image in images.items()}
    return {**packed, f"{TOP}/LICENSE": b"Apache", f"{TOP}/setup.py": b"raise SystemExit"}


def _archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_the_ct_and_nine_masks_are_laid_out(tmp_path: Path, members, made) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lay_out(_archive(tmp_path / "a.tar.gz", members), folder)
    (case,) = discover(folder)
    assert case.id == CASE and len(case.masks) == 9 and list(verify([case])) == []
    stored = nibabel.load(case.ct)
    assert stored.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(stored.dataobj), made.ct)
    combined = nibabel.load(case.ct.parent / "combined_labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(combined.dataobj), made.labels)
    assert (folder / "LICENSE.totalsegmentator-Apache-2.0.txt").read_bytes() == b"Apache"
    assert not list(folder.rglob("setup.py"))


def test_no_path_of_the_archive_is_followed(tmp_path: Path, members) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    evil = {**members, "../../escaped.txt": b"x", "/absolute.txt": b"x"}
    lay_out(_archive(tmp_path / "a.tar.gz", evil), folder)
    written = {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}
    assert written == {CASE, "LICENSE.totalsegmentator-Apache-2.0.txt"}
    assert {p.name for p in tmp_path.iterdir()} == {"data", "a.tar.gz"}


def test_a_link_in_place_of_the_ct_is_refused(tmp_path: Path, members) -> None:
    del members[CT]
    path = _archive(tmp_path / "a.tar.gz", members)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar, tarfile.open(path) as old:
        for member in old:
            tar.addfile(member, old.extractfile(member))
        link = tarfile.TarInfo(CT)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(ValueError, match="expected one plain file .*example_ct.nii.gz"):
        lay_out(tmp_path / "b.tar.gz", tmp_path)


def test_other_archives_are_refused(tmp_path: Path, members) -> None:
    del members[LABELS]
    with pytest.raises(ValueError, match="a.tar.gz: expected one plain file .*force_split"):
        lay_out(_archive(tmp_path / "a.tar.gz", members), tmp_path)
    broken = tmp_path / "b.tar.gz"
    broken.write_bytes((tmp_path / "a.tar.gz").read_bytes()[:-3000])
    with pytest.raises(ValueError, match="b.tar.gz: not a readable"):
        lay_out(broken, tmp_path)
    with pytest.raises(ValueError, match="c.tar.gz: not a readable"):
        lay_out(tmp_path / "c.tar.gz", tmp_path)
    members[LABELS] = b"no image"
    raw = bytearray(_archive(tmp_path / "e.tar.gz", members).read_bytes())
    raw[900:] = b"\xff" * (len(raw) - 900)
    (tmp_path / "e.tar.gz").write_bytes(raw)
    with pytest.raises(ValueError, match="e.tar.gz: "):
        lay_out(tmp_path / "e.tar.gz", tmp_path)
    huge = tarfile.TarInfo(CT)
    huge.size = 1 << 40
    (tmp_path / "f.tar.gz").write_bytes(gzip.compress(huge.tobuf() + bytes(1024)))
    with pytest.raises(ValueError, match="f.tar.gz: .*example_ct.nii.gz has 1099511627776 bytes"):
        lay_out(tmp_path / "f.tar.gz", tmp_path)
    with pytest.raises(VolumeError, match=f"{CASE}: labels.nii.gz is no single-file NIfTI"):
        lay_out(_archive(tmp_path / "d.tar.gz", members), tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
