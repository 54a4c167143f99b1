"""Turning arrays and grids: no voxel moves in the patient, and equal grids are found."""

import itertools

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from touchstone_jax.findings import VolumeError
from touchstone_jax.io.geometry import Geometry, Reorientation, canonical
from touchstone_jax.io.grids import same_geometry

AFFINE = np.array([[0, -2, 0, 9], [0, 0, 3, -4], [-1, 0, 0, 7], [0, 0, 0, 1]], np.float64)


def test_every_reorientation_is_undone_by_its_inverse() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Reorientation(axes, flips)
            np.testing.assert_array_equal(turn.inverse().apply(turn.apply(array)), array)


def test_reorienting_moves_no_voxel_in_the_patient() -> None:
    geometry = Geometry((2, 3, 4), AFFINE)
    array = np.arange(24).reshape(2, 3, 4)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Reorientation(axes, flips)
            moved, grid = turn.apply(array), geometry.reoriented(turn)
            assert grid.shape == moved.shape
            for value, index in ((v, np.argwhere(moved == v)[0]) for v in (0, 5, 23)):
                old = np.argwhere(array == value)[0]
                np.testing.assert_allclose(grid.affine @ [*index, 1], AFFINE @ [*old, 1])


def test_canonical_agrees_with_nibabel_on_random_grids() -> None:
    # Up to 35 degrees off the patient's axes; beyond 45 "closest" is a matter of taste.
    rng = np.random.default_rng(0)
    for _ in range(50):
        tilt = Rotation.from_rotvec(np.radians(35) * rng.uniform(-1, 1, 3) / np.sqrt(3))
        turn = tilt.as_matrix()[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
        affine = np.eye(4)
        affine[:3, :3] = turn * rng.uniform(0.5, 3, 3)
        geometry = Geometry((4, 5, 6), affine)
        array = rng.normal(size=(4, 5, 6))
        theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
        np.testing.assert_array_equal(canonical(geometry).apply(array), theirs.get_fdata())
        np.testing.assert_allclose(
            geometry.reoriented(canonical(geometry)).affine, theirs.affine, atol=1e-6
        )
        assert geometry.orientation == "".join(nibabel.aff2axcodes(affine))


def test_same_geometry_finds_every_flip_and_permutation() -> None:
    a = Geometry((2, 3, 4), AFFINE)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn = Reorientation(axes, flips)
            b = a.reoriented(turn)
            assert same_geometry(a, b) == turn.inverse()


def test_same_geometry_allows_header_noise_and_refuses_more() -> None:
    a = Geometry((20, 30, 40), AFFINE)
    noisy, far = AFFINE.copy(), AFFINE.copy()
    noisy[:3, 3] += 0.05
    far[0, 3] += 0.2
    assert same_geometry(a, Geometry(a.shape, noisy)).is_identity()
    with pytest.raises(VolumeError, match="x1: mask lies 0.2 mm off the CT .* 0.1 mm"):
        same_geometry(a, Geometry(a.shape, far), case="x1")
    assert same_geometry(a, Geometry(a.shape, far), tolerance_mm=0.3).is_identity()
    # A spacing that is off by little adds up over the volume.
    scaled = AFFINE.copy()
    scaled[:3, 0] *= 1.02
    with pytest.raises(VolumeError, match=r"0\.38 mm"):
        same_geometry(a, Geometry(a.shape, scaled))
    with pytest.raises(VolumeError, match=r"shape \(20, 30, 41\)"):
        same_geometry(a, Geometry((20, 30, 41), AFFINE))
