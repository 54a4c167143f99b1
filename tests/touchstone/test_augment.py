"""Random changes of patches: each against NumPy or SciPy, and what must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from touchstone_jax.augment import program as changes
from touchstone_jax.augment import warp
from touchstone_jax.augment.settings import NONE, Augmentation
from touchstone_jax.losses import IGNORE

RNG = np.random.default_rng(0)
# Programs run once: compiling is the cost.
QUICKLY = {"xla_backend_optimization_level": 0}
BLOCK, PATCH = (10, 8, 9), (6, 6, 5)
IMAGE = RNG.normal(size=(*BLOCK, 1)).astype(np.float32)
LABELS = RNG.integers(0, 4, BLOCK).astype(np.uint8)
CROP = np.s_[2:8, 1:7, 2:7]


def settings(**values):
    return dataclasses.replace(NONE, **values)


def run(key, chosen, image=IMAGE, labels=LABELS, patch=PATCH, spacing_mm=(1.0, 1.0, 1.0)):
    one = jax.jit(
        lambda k, i, y: changes.augment(k, i, y, chosen, patch=patch, spacing_mm=spacing_mm),
        compiler_options=QUICKLY,
    )
    made = one(jax.random.key(key), jnp.asarray(image), jnp.asarray(labels))
    return tuple(np.asarray(a) for a in made)


@pytest.fixture(scope="module")
def batch():
    """Everything at once, for a batch of keys: jit of vmap."""
    chosen = Augmentation()
    return jax.jit(
        lambda k, i, y: changes.augment_batch(k, i, y, chosen, patch=PATCH, spacing_mm=(1, 1, 2.0)),
        compiler_options=QUICKLY,
    )


def test_nothing_is_the_crop_and_so_is_a_transform_that_was_not_drawn():
    for chosen in (NONE, settings(rotation_p=1e-9, noise_p=1e-9)):
        image, labels = run(0, chosen)
        np.testing.assert_array_equal(image, IMAGE[CROP])
        np.testing.assert_array_equal(labels, LABELS[CROP])


def test_keys_decide_everything_and_samples_differ(batch):
    image, labels = np.stack([IMAGE] * 3), np.stack([LABELS] * 3)
    a, b, c = (batch(jax.random.key(k), image, labels) for k in (0, 0, 1))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    assert (a[0] != c[0]).any() and (a[0][0] != a[0][1]).any()
    assert a[0].shape == (3, *PATCH, 1) and a[0].dtype == np.float32
    assert a[1].shape == (3, *PATCH) and a[1].dtype == np.uint8
    assert np.isfinite(a[0]).all() and set(np.unique(a[1])) <= {0, 1, 2, 3, IGNORE}


def test_edge_images_stay_finite(batch):
    for value in (0.0, 7.0, 6e4):  # a constant has no range, no deviation
        flat = np.full((3, *BLOCK, 1), value, np.float32)
        image, _ = batch(jax.random.key(3), flat, np.zeros((3, *BLOCK), np.uint8))
        assert np.isfinite(image).all()


def test_rotation_is_scipys_and_labels_follow(x64):
    angles = np.array([0.3, -0.5, 1.2])
    np.testing.assert_allclose(
        warp.rotation(jnp.asarray(angles)),
        Rotation.from_euler("xyz", angles).as_matrix(),
        atol=1e-12,
    )


def test_sampling_is_scipys():
    at = RNG.uniform(-2, 11, (3, 4, 5, 6)).astype(np.float32)
    got = jax.jit(warp.sample_linear)(IMAGE, at)
    expected = ndimage.map_coordinates(
        np.pad(IMAGE[..., 0].astype(np.float64), 6), at.astype(np.float64) + 6, order=1
    )
    np.testing.assert_allclose(got[..., 0], expected, atol=1e-5)
    got = jax.jit(warp.sample_nearest, static_argnums=2)(LABELS, at, IGNORE)
    padded = np.pad(LABELS, 6, constant_values=IGNORE)
    np.testing.assert_array_equal(got, padded[tuple(np.rint(at + 6).astype(int))])


def test_a_quarter_turn_is_exact_in_millimetres():
    # Voxels of 1 × 2 mm: 8 × 4 of them are a square, and a quarter turn of it fits itself.
    chosen = settings(rotation_p=1.0, rotation_degrees=(0.0, 0.0, 90.0))
    x, y = (np.arange(n) - (n - 1) / 2 for n in (16, 8))
    image = np.broadcast_to((x[:, None] + 20 * 2 * y[None])[:, :, None, None], (16, 8, 3, 1))
    labels = (image[..., 0] > 0).astype(np.uint8)
    how = {"patch": (4, 2, 3), "spacing_mm": (1.0, 2.0, 3.0)}
    for key in range(3):
        got, turned = run(key, chosen, image.astype(np.float32), labels, **how)
        gradient = got[1, 0, 1, 0] - got[0, 0, 1, 0], (got[0, 1, 1, 0] - got[0, 0, 1, 0]) / 2
        # The image rises by (1, 20) a mm. A rotation keeps the length of that vector ...
        assert np.hypot(*gradient) == pytest.approx(np.hypot(1, 20), rel=1e-4)
        # ... and the plane stays a plane; labels follow the image.
        assert np.ptp(np.diff(got, axis=0)) < 1e-3
        np.testing.assert_array_equal(turned, got[..., 0] > 0)


@pytest.mark.parametrize("samples", [1, 2])
def test_coordinates_are_numpys_for_any_batch(samples):
    # jax 0.10.2 compiled the obvious formula to nonsense for a batch of one from 32 voxels on.
    patch, first = (32, 24, 28), (1, 2, 3)
    matrices = RNG.normal(size=(samples, 3, 3)).astype(np.float32)
    got = jax.jit(jax.vmap(lambda m: changes._coordinates(m, patch, first)))(matrices)
    half = (np.array(patch) - 1) / 2
    away = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij"), -1) - half
    expected = np.einsum("sij,xyzj->sixyz", matrices.astype(np.float64), away)
    expected += (half + first).reshape(1, 3, 1, 1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_batch_of_one_large_patch_is_as_without_jit():
    image = RNG.normal(size=(1, 40, 32, 36, 1)).astype(np.float32)
    labels = (image[..., 0] > 0).astype(np.uint8)
    chosen = settings(rotation_p=1.0, scaling_p=1.0)

    def run(image, labels):
        key = jax.random.key(2)
        return changes.augment_batch(key, image, labels, chosen, patch=(40, 32, 36))

    plain = run(jnp.asarray(image), jnp.asarray(labels))
    compiled = jax.jit(run, compiler_options=QUICKLY)(image, labels)
    np.testing.assert_allclose(compiled[0], plain[0], atol=1e-3)
    assert (np.asarray(compiled[1]) != plain[1]).mean() < 1e-3


def test_scaling_shows_more_or_less():
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None, None], (12, 6, 6, 1)).astype(np.float32)
    chosen = settings(scaling_p=1.0, scaling=(1.25, 1.25), coarse_axis=2)
    got, _ = run(0, chosen, ramp, np.zeros(ramp.shape[:3], np.uint8), patch=(4, 4, 6))
    np.testing.assert_allclose(np.diff(got[:, 1, 1, 0]), 1.25, rtol=1e-5)
    assert (got[:, :, 0] == got[:, :, 5]).all()  # the coarse axis was left alone


def test_what_comes_from_outside_is_told():
    chosen = settings(scaling_p=1.0, scaling=(3.0, 3.0))
    _, labels = run(0, chosen, labels=np.ones(BLOCK, np.uint8))
    assert labels[0, 0, 0] == IGNORE and labels[3, 3, 2] == 1


def test_mirroring_takes_the_axes_it_may():
    chosen = settings(mirror_axes=(0, 2))
    seen = set()
    for key in range(16):
        image, labels = run(key, chosen)
        for flips in ((), (0,), (2,), (0, 2)):
            if np.array_equal(image, np.flip(IMAGE[CROP], flips)):
                np.testing.assert_array_equal(labels, np.flip(LABELS[CROP], flips))
                seen.add(flips)
    assert seen == {(), (0,), (2,), (0, 2)}
    image, _ = run(0, settings(mirror_axes=(1,), mirror_p=1.0))
    np.testing.assert_array_equal(image, np.flip(IMAGE[CROP], 1))


def test_blur_is_scipys():
    sigma = jnp.asarray([0.6, 1.0], jnp.float32)
    image = np.concatenate([IMAGE, -2 * IMAGE], -1)
    for axis in range(3):
        got = jax.jit(warp.gaussian_blur, static_argnums=1, static_argnames="radius")(
            image, axis, sigma, radius=4
        )
        for c in range(2):
            expected = ndimage.gaussian_filter1d(
                image[..., c], float(sigma[c]), axis, mode="nearest", radius=4
            )
            np.testing.assert_allclose(got[..., c], expected, atol=1e-5)


@pytest.mark.parametrize("zoom", [0.5, 0.63, 0.81, 1.0, 0.01])
def test_fewer_voxels_is_nearest_down_and_linear_up(zoom):
    line = RNG.normal(size=10)
    m = max(1, round(10 * zoom))
    small = line[[int((k + 0.5) * 10 / m) for k in range(m)]]
    expected = np.interp((np.arange(10) + 0.5) * m / 10 - 0.5, np.arange(m), small)
    image = jnp.asarray(line.reshape(1, 10, 1, 1), jnp.float32)
    got = warp.fewer_voxels(image, 1, jnp.float32(zoom))
    np.testing.assert_allclose(got[0, :, 0, 0], expected, atol=1e-5)


def test_intensities_change_as_their_names_say():
    crop = IMAGE[CROP]
    image, _ = run(1, settings(brightness_p=1.0))
    ratio = image / crop
    assert np.ptp(ratio) < 1e-5 and 0.75 <= ratio.mean() <= 1.25 and abs(ratio.mean() - 1) > 1e-3
    image, _ = run(1, settings(contrast_p=1.0, contrast=(0.75, 0.76)))
    assert 0.7 < image.std() / crop.std() < 0.8 and image.mean() == pytest.approx(
        crop.mean(), abs=1e-5
    )
    image, _ = run(2, settings(contrast_p=1.0, contrast=(1.2, 1.25)))
    assert image.max() == crop.max() and image.min() == crop.min() and image.std() > crop.std()
    image, _ = run(1, settings(noise_p=1.0, noise_std=(0.5, 0.5)))
    assert (image - crop).std() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("name", ["gamma_p", "gamma_inverted_p"])
def test_gamma_keeps_mean_deviation_and_order(name):
    crop = IMAGE[CROP]
    image, _ = run(1, settings(**{name: 1.0}, gamma=(1.5, 1.5)))
    assert image.mean() == pytest.approx(crop.mean(), abs=1e-5)
    assert image.std() == pytest.approx(crop.std(), rel=1e-4)
    order = np.argsort(crop.ravel(), kind="stable")
    rises = np.diff(image.ravel()[order])
    assert (rises >= -1e-6).all()
    # A power above 1 flattens the dark end; of the inverted image the bright one.
    dark, bright = (np.interp(q, [0, 1], [0, len(rises) - 1]).astype(int) for q in (0.1, 0.9))
    slope = rises / np.maximum(np.diff(crop.ravel()[order]), 1e-6)
    flat_first = np.median(slope[:dark]) < np.median(slope[bright:])
    assert flat_first == (name == "gamma_p")


def test_factors_are_below_one_as_often_as_above():
    draw = jax.vmap(lambda k: changes._Draws(k, 2).factors((0.7, 1.5)))
    factors = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)))
    assert factors.shape == (1000, 1, 1, 1, 2)
    assert factors.min() >= 0.7 and factors.max() <= 1.5 and factors.max() > 1.45
    assert abs((factors < 1).mean() - 0.5) < 0.04
    both = np.corrcoef(factors.reshape(1000, 2).T)[0, 1]
    assert abs(both) < 0.1  # each channel has its own


def test_probabilities_are_kept():
    chosen = settings(brightness_p=0.15)
    made = jax.jit(lambda k, i, y: changes.augment_batch(k, i, y, chosen, patch=(1, 1, 1))[0])(
        jax.random.key(0),
        np.ones((2000, 1, 1, 1, 1), np.float32),
        np.zeros((2000, 1, 1, 1), np.uint8),
    )
    assert abs((np.asarray(made) != 1).mean() - 0.15) < 0.03


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"noise_p": 1.5}, r"noise_p=1.5; expected a probability"),
        ({"noise_p": float("nan")}, "noise_p=nan"),
        ({"scaling": (1.4, 0.7)}, r"scaling=\(1.4, 0.7\); expected \(low, high\)"),
        ({"scaling": 0.7}, "scaling=0.7"),
        ({"low_resolution": [0.5, 1.2]}, "low_resolution=.*high <= 1"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma=\(0.0, 1.0\)"),
        ({"mirror_axes": (0, 3)}, r"mirror_axes=\(0, 3\); expected different axes"),
        ({"mirror_axes": (1, 1)}, "mirror_axes"),
        ({"rotation_degrees": (30.0, 30.0)}, "rotation_degrees=.*three angles"),
        ({"coarse_axis": 3}, "coarse_axis=3; expected None"),
    ],
)
def test_bad_settings_are_told(values, said):
    with pytest.raises(ValueError, match=said):
        Augmentation(**values)


def test_misfits_are_told():
    with pytest.raises(ValueError, match=r"patch \(11, 6, 5\), image \(10, 8, 9\)"):
        run(0, NONE, patch=(11, 6, 5))
    with pytest.raises(ValueError, match=r"labels \(9, 8, 9\)"):
        run(0, NONE, labels=LABELS[1:])
