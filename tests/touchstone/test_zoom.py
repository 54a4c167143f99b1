"""Zoom-out, zoom-in: boxes against loops, and networks whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.touchstone.cases import dataset
from tests.touchstone.test_models import drawn
from tests.touchstone.test_prompts import PLACES, Prompted
from tests.touchstone.toy_network import SCHEME, Thresholds
from touchstone_jax.infer import SlidingWindow, Zoom
from touchstone_jax.infer.zoom import seen_in, shrunk, zoom_box
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.predict import Predict
from touchstone_jax.prompts import Prompts

WINDOW, SHAPE = (8, 6, 10), (41, 33, 37)
LABELS = Scheme("two", {"liver": 1, "spleen": 2})
GRID = Geometry(SHAPE, np.diag([2.0, 3.0, 4.0, 1.0]))
LIVER, SPLEEN = (slice(6, 17), slice(12, 20), slice(3, 14)), (slice(30, 35),) * 2 + (slice(20, 25),)


# ------------------------------------------------------------------------ where


@pytest.mark.parametrize("shape", [(9, 7, 5), (8, 6, 10), (3, 20, 11)])
def test_the_small_volume_holds_the_voxels_nearest_to_its_centres(shape):
    image = np.arange(np.prod(shape)).reshape(shape)
    small = shrunk(image, WINDOW)
    assert small.shape == WINDOW
    for at in np.ndindex(*WINDOW):
        centre = [(i + 0.5) * n / m for i, n, m in zip(at, shape, WINDOW, strict=True)]
        assert small[at] == image[tuple(int(c) for c in centre)]


@pytest.mark.parametrize("shape", [SHAPE, (41, 6, 37), (5, 33, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_boxes_hold_what_was_seen_and_are_as_large_as_a_window(shape, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(WINDOW) < (0.004, 0.01, 0.05, 1.0)[seed]
    mask[tuple(rng.integers(WINDOW))] = True
    box = zoom_box(mask, shape, WINDOW)
    for axis, (side, n, w) in enumerate(zip(box, shape, WINDOW, strict=True)):
        assert side.start >= 0 and side.stop <= n and side.stop - side.start >= min(n, w)
        seen = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        first, last = seen[0] * n / WINDOW[axis], (seen[-1] + 1) * n / WINDOW[axis]
        assert side.start <= first and last <= side.stop
        if last - first > w:  # nothing is added
            assert side.start > first - 1 and side.stop < last + 1


@pytest.mark.parametrize("corner", [(0, 0, 0), (20, 11, 17), (-2, 30, 30)])
@pytest.mark.parametrize("flips", [(False,) * 3, (True, False, True)])
def test_what_was_seen_in_a_window(corner, flips):
    mask = np.random.default_rng(1).random(WINDOW) < 0.03
    places = []
    for at in np.ndindex(*WINDOW):
        voxel = [c + i for c, i in zip(corner, at, strict=True)]
        if all(0 <= v < n for v, n in zip(voxel, SHAPE, strict=True)):
            coarse = [int((v + 0.5) * m / n) for v, m, n in zip(voxel, WINDOW, SHAPE, strict=True)]
            if mask[tuple(coarse)]:
                mirrored = [w - 1 - i for i, w in zip(at, WINDOW, strict=True)]
                places.append(np.where(flips, mirrored, at))
    found = seen_in(mask, SHAPE, corner, flips, WINDOW)
    assert (found is not None) == bool(places)
    if places:
        np.testing.assert_array_equal(found, [*np.min(places, 0), *np.max(places, 0)])
    assert seen_in(np.zeros(WINDOW, bool), SHAPE, corner, flips, WINDOW) is None


# ------------------------------------------------------------------------ what is told


def asked(**cases):
    """What windows of a volume of `SHAPE`, and the small one, are told."""
    prompts = Prompts(cases, PLACES, LABELS)
    pair = [prompts.of_windows("a", GRID, shape, WINDOW) for shape in (SHAPE, WINDOW)]
    return dict(zip(("told", "small"), pair, strict=True))


def bright(traced):
    """Organ 1 above 1, organ 2 above 2, as far as they are asked for; the background 0."""

    def network(x, told):
        traced.append(x.shape)
        known = told["named"] | told["boxed"] | (told["signs"] >= 0).any(-1)
        least, steep = (jnp.asarray(v).reshape(1, 1, 1, 1, 2) for v in ([1.0, 2.0], [1.0, 10.0]))
        logits = (x - least) * steep
        logits = jnp.where(known[:, None, None, None], logits, -1)
        return jnp.pad(logits, [(0, 0)] * 4 + [(1, 0)])

    return network


@pytest.fixture(scope="module")
def image():
    """A liver of 1.5, a spleen of 2.5 and a lone voxel that the small volume does not show."""
    image = np.full(SHAPE, -1, np.float32)
    image[LIVER], image[SPLEEN], image[39, 1, 35] = 1.5, 2.5, 1.5
    assert (shrunk(image, WINDOW) == 1.5).any() and (shrunk(image, WINDOW) == 2.5).any()
    return image


@pytest.fixture(scope="module")
def sliding():
    traced = []
    told = asked()["told"]
    made = SlidingWindow(bright(traced), WINDOW, batch=3, mirror=(0,), told=told)
    made.traced = traced
    return made


def test_inside_of_the_box_all_is_as_without_and_far_from_it_nothing_is(sliding, image):
    said = asked()
    plain = sliding.labels(image, told=said["told"])
    found, windows = Zoom(sliding).labels(image, case="a", **said)
    assert plain[39, 1, 35] == 1 and found[39, 1, 35] == 0
    assert (found[SPLEEN] == 2).all() and (plain[SPLEEN] == 2).all()
    # Organ 1 is seen in both boxes.
    seen = shrunk(image, WINDOW) > 1
    box = zoom_box(seen, SHAPE, WINDOW)
    np.testing.assert_array_equal(found[box], plain[box])
    outside = np.ones(SHAPE, bool)
    outside[box] = False
    assert not found[outside].any() and found.dtype == np.uint8
    again, _ = Zoom(sliding).labels(image, case="a", **said)
    np.testing.assert_array_equal(again, found)
    assert windows > 0


def test_one_organ_takes_fewer_windows_and_no_other_is_found(sliding, image):
    said = asked(organs=["spleen"])
    found, windows = Zoom(sliding).labels(image, case="a", **said)
    assert (found[SPLEEN] == 2).all() and set(np.unique(found)) == {0, 2}
    assert windows == 2 * sliding.count(WINDOW) and sliding.count(SHAPE) > 50 * windows
    assert sliding.traced == [(3, *WINDOW, 1)]


@pytest.mark.parametrize("fill", [-1.0, 0.5])
def test_what_is_not_seen_at_first_is_not_looked_for(sliding, fill):
    image = np.full(SHAPE, fill, np.float32)
    image[39, 1, 35] = 3
    found, windows = Zoom(sliding).labels(image, case="a", **asked())
    assert not found.any() and windows == sliding.count(WINDOW) == 2


@pytest.mark.parametrize("shape", [WINDOW, (5, 33, 4), (3, 2, 1)])
def test_small_volumes_are_looked_at_twice(sliding, shape):
    prompts = Prompts({}, PLACES, LABELS)
    grid = Geometry(shape, np.eye(4))
    told, small = (prompts.of_windows("a", grid, s, WINDOW) for s in (shape, WINDOW))
    image = np.full(shape, 1.5, np.float32)
    found, _ = Zoom(sliding).labels(image, case="a", told=told, small=small)
    assert found.shape == shape and (found == 1).all()
    with pytest.raises(ValueError, match="a: image has 1 NaN or infinite"):
        image[0, 0, 0] = np.nan
        Zoom(sliding).labels(image, case="a", told=told, small=small)


def obedient(x, told):
    """An organ is where its box is, else 3 voxels around its points; without either nowhere."""
    axes = [jnp.arange(n, dtype=jnp.float32) for n in WINDOW]
    at = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)[None, :, :, :, None]
    low, high = told["boxes"][:, None, None, None, :, :3], told["boxes"][:, None, None, None, :, 3:]
    inside = ((at >= low) & (at <= high)).all(-1)
    away = jnp.abs(at[..., None, :] - told["points"][:, None, None, None]).max(-1)
    near = ((away <= 3) & (told["signs"][:, None, None, None] == 1)).any(-1)
    made = jnp.where(told["boxed"][:, None, None, None], inside, near)
    return jnp.pad(jnp.where(made, x + 1, -1), [(0, 0)] * 4 + [(1, 0)])


def ends(labels, organ):
    at = np.argwhere(labels == organ)
    return at.min(0).tolist(), at.max(0).tolist()


def test_places_reach_both_looks_and_what_was_seen_is_told_in_turn():
    millimetres = {
        # Voxels 10..29, 3..14, 12..13: several windows; and 20..23, 20..25, 20..25: one.
        "liver": {"box": [20.0, 9.0, 48.0, 58.0, 42.0, 52.0]},
        "spleen": {"box": [40.0, 60.0, 80.0, 46.0, 75.0, 100.0]},
    }
    said = asked(organs=[], cases={"a": millimetres})
    sliding = SlidingWindow(obedient, WINDOW, told=said["told"])
    found, _ = Zoom(sliding).labels(np.zeros(SHAPE, np.float32), case="a", **said)
    # One window is told the user's own box, cut to the window, which begins at y = 22.
    assert ends(found, 2) == ([20, 22, 20], [23, 25, 25])
    # Of several each is told what was seen: small voxels whose centres the box holds.
    assert ends(found, 1) == large((2, 1, 3), (5, 2, 3))


def large(low, high):
    """First and last voxels of the volume that a box of the small one covers."""
    at = [((np.arange(n) + 0.5) * m / n).astype(int) for m, n in zip(WINDOW, SHAPE, strict=True)]
    first = [int(np.searchsorted(a, v)) for a, v in zip(at, low, strict=True)]
    return first, [int(np.searchsorted(a, v + 1)) - 1 for a, v in zip(at, high, strict=True)]


def test_a_point_counts_in_windows_that_do_not_hold_it():
    said = asked(organs=[], cases={"a": {"spleen": {"points": [[40.0, 48.0, 72.0, 1]]}}})
    sliding = SlidingWindow(obedient, WINDOW, told=said["told"])
    image = np.zeros(SHAPE, np.float32)
    low, high = ends(sliding.labels(image, told=said["told"]), 2)
    assert (np.subtract(high, low) <= 6).all()
    found, _ = Zoom(sliding).labels(image, case="a", **said)
    # Three voxels of the small volume around the point at (3.5, 2.5, 4.5).
    assert ends(found, 2) == large((1, 0, 2), (6, 5, 7)) and not (found == 1).any()


# ------------------------------------------------------------------------ networks and the job


def test_segvol_zooms():
    """Of an organ that it sees, the masks of its windows in the box; of the others nothing."""
    graphdef, state = nnx.split(drawn("segvol"))

    def network(x, told):
        return nnx.merge(graphdef, state)(jnp.concatenate([x, -x], -1), told)

    window, shape = (16, 16, 8), (36, 20, 17)
    prompts = Prompts({"organs": ["spleen"]}, PLACES, LABELS)
    grid = Geometry(shape, np.eye(4))
    told, small = (prompts.of_windows("a", grid, s, window) for s in (shape, window))
    sliding = SlidingWindow(network, window, batch=2, told=told)
    image = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    found, windows = Zoom(sliding).labels(image, case="a", told=told, small=small)
    seen = sliding.logits(shrunk(image, window), told=small) > 0
    assert not seen[..., 1].any() and 0 < seen[..., 2].mean() < 1
    box = zoom_box(seen[..., 2], shape, window)
    part = sliding.logits(image[box], told=told)  # the same in every window: names alone
    expected = np.zeros(shape, np.uint8)
    expected[box][part[..., 2] > 0] = 2
    assert expected.any() and windows == 1 + sliding.count(part.shape[:3])
    np.testing.assert_array_equal(found, expected)


def test_the_job_zooms(tmp_path):
    (case,) = dataset(tmp_path / "data", noise_hu=0.0)
    state, rows = {"sharpness": jnp.float32(2)}, {}
    for zoom in (False, True):
        job = Predict(str(tmp_path / "data"), zoom=zoom, prompts={"organs": ["aorta"]})
        job.restore(Prompted(), state)
        (tmp_path / str(zoom)).mkdir()
        rows[zoom] = job.run(case.id, tmp_path / str(zoom))
    assert rows[True]["ml_aorta"] == pytest.approx(rows[False]["ml_aorta"], rel=0.2)
    assert 0 < rows[True]["ml_aorta"] <= rows[False]["ml_aorta"]
    assert rows[True]["windows"] <= rows[False]["windows"]
    job = Predict(str(tmp_path / "data"), zoom=True)  # all organs by their names
    job.restore(Prompted(), state)
    told = job._prompts.of_windows(case.id, GRID, WINDOW, WINDOW)((0, 0, 0), (False,) * 3)
    assert told["named"].all() and len(told["named"]) == len(SCHEME.classes)
    with pytest.raises(ValueError, match="zoom=True: the network cannot be asked for organs"):
        job.restore(Thresholds(), state)
