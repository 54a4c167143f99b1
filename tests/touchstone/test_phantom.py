"""Phantoms: the same for a seed, every organ there and where anatomy puts it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import SHAPE, SPACING_MM, dataset
from touchstone_jax import io
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts import discover
from touchstone_jax.phantom import phantom, write_dataset
from touchstone_jax.verify import verify

INDICES = scheme("abdomenatlas_1.0").indices


def _centre(labels: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(labels == INDICES[name]).mean(axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_every_organ_is_there_and_in_its_place(seed: int) -> None:
    made = phantom(seed, shape=SHAPE, spacing_mm=SPACING_MM)
    assert set(np.unique(made.labels)) == set(range(10))
    at = {name: _centre(made.labels, name) for name in INDICES}
    assert at["kidney_left"][0] < at["aorta"][0] < at["kidney_right"][0]
    assert at["spleen"][0] < at["stomach"][0] < at["liver"][0]
    assert at["kidney_left"][1] < at["pancreas"][1] and at["liver"][2] > at["kidney_right"][2]
    assert made.ct.dtype == np.int16 and made.ct.min() < -950 and made.ct.max() < 700
    for name, low, high in (("liver", 90, 130), ("aorta", 180, 240), ("gall_bladder", -15, 25)):
        assert low < made.ct[made.labels == INDICES[name]].mean() < high


def test_a_phantom_depends_on_its_arguments_alone() -> None:
    a, b, c = (phantom(seed, shape=SHAPE) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.ct, b.ct)
    assert (a.labels != c.labels).any()
    turned = phantom(3, shape=SHAPE, orientation="IRP")
    np.testing.assert_array_equal(a.ct, turned.ct)
    assert turned.geometry.orientation == "IRP" and turned.geometry.shape == (20, 24, 22)


def test_a_data_set_is_the_same_bytes_again_and_without_findings(tmp_path: Path) -> None:
    cases = dataset(tmp_path / "a", n=3, seed=5)
    dataset(tmp_path / "b", n=3, seed=5)
    files = [path for case in cases for path in case.files]
    assert len(files) == 30
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()
    assert list(verify(cases)) == []
    found = [io.read_geometry(case.ct, case=case.id)[0] for case in cases]
    assert [g.orientation for g in found] == ["RAS", "LPS", "ASR"]
    assert len({g.spacing_mm for g in found}) == 3
    combined = np.asarray(nibabel.load(cases[0].ct.parent / "combined_labels.nii.gz").dataobj)
    np.testing.assert_array_equal(combined == 5, nibabel.load(cases[0].files[5]).get_fdata() > 0)
    assert discover(tmp_path / "a") == cases


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"shape": (8, 20, 20)}, "at least 16 voxels"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm"),
        ({"orientation": "RLS"}, "orientation='RLS'"),
        ({"orientation": "RA"}, "orientation='RA'"),
        ({"orientation": "RASX"}, "orientation='RASX'"),
        ({"noise_hu": -1}, "noise_hu=-1"),
    ],
)
def test_mistakes_are_told(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        phantom(**{"seed": 0, **options})


def test_no_phantoms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n=0"):
        write_dataset(tmp_path, 0)
