"""Heatmap losses against the original's values and gradients, slow sums, and edge cases."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax.losses import (
    CAP,
    HeatmapLoss,
    background_loss,
    foreground_loss,
    foreground_sums,
    gwrp,
    resize_mask,
    total_relevance,
    tune_cuts,
)

NORMS = {"absRoIMean": "abs_mean", "RoIMean": "mean", "none": "none"}


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "isnet" / "loss_unit.npz") as file:
        return {key: file[key] for key in file.files}


def _last(a: np.ndarray) -> np.ndarray:
    """(..., c, h, w) to (..., h, w, c)."""
    return np.moveaxis(a, -3, -1)


def _close(ours, theirs, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# ---------------------------------------------------------------- the original's arrays


def test_golden_ranked_pooling(arrays, x64) -> None:
    x = arrays["gwrp/x"]
    flat = jnp.asarray(x.reshape(*x.shape[:3], -1))
    for decay in ("0", "0.5", "0.9", "0.996", "1.0"):
        _close(gwrp(flat, float(decay)), arrays[f"gwrp/d{decay}"])
    for decay in ("0.8", "1.0"):
        _close(gwrp(jnp.asarray(arrays["gwrp1d/x"]), float(decay)), arrays[f"gwrp1d/d{decay}"])


def test_golden_losses_and_gradients(arrays, x64) -> None:
    relevance, mask = _last(arrays["loss/heatmap"]), _last(arrays["loss/mask"])
    _close(foreground_sums(relevance, mask), arrays["loss/foreground_sums"])
    pattern = re.compile(r"loss/(\w+)_d([\d.]+)_E(\d+)_(L2|L1|hybrid)_ch([\d.]+)")
    cases = [found for key in arrays if (found := pattern.fullmatch(key))]
    assert len(cases) == 42
    losses = {}
    for case in cases:
        norm, decay, scale, right, channels = case.groups()
        settings = HeatmapLoss(
            *(1, 3, float(decay), float(scale), right.lower(), NORMS[norm], float(channels))
        )
        losses[case.string] = partial(_loss, settings)
    for key, (ours, grad) in _all(losses)(relevance, mask).items():
        _close(ours, arrays[key])
        _close(grad, _last(arrays[f"{key}/grad"]))


def _loss(settings: HeatmapLoss, relevance, mask):
    values = settings(relevance, mask, (1.0, 25.0))[0]
    return values.sum(), values


def _all(losses):
    """Values and gradients of many losses in one program."""

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(relevance, mask):
        found = {}
        for key, loss in losses.items():
            grad, values = jax.grad(loss, has_aux=True)(relevance, mask)
            found[key] = values, grad
        return found

    return run


def test_golden_terms_and_cuts_of_each_map(arrays, x64) -> None:
    relevance, mask = _last(arrays["loss/heatmap"]), _last(arrays["loss/mask"])
    _, background, foreground = HeatmapLoss()(relevance, mask)
    _close(background, arrays["loss/bg_only"])
    _close(foreground, arrays["loss/fg_only"])
    low, high = jnp.array([0.5, 2.0]), jnp.array([10.0, 30.0])
    dual = HeatmapLoss(1, 3, 0.9, 1.0, "l2")(relevance, mask, (low, high))[0]
    _close(dual, arrays["loss/z+e"])


def test_golden_mask_resizing(arrays, x64) -> None:
    mask = _last(arrays["resize/mask"])
    for size in ("4x5", "8x10", "7x7", "5x9"):
        space = tuple(map(int, size.split("x")))
        np.testing.assert_array_equal(
            resize_mask(jnp.asarray(mask), space), _last(arrays[f"resize/{size}"])
        )
        relevance = _last(arrays[f"resize/{size}/heatmap4ch"])
        ours = jax.jit(HeatmapLoss(right="l2"))(relevance, mask)[0]
        _close(ours, arrays[f"resize/{size}/loss"])


def test_golden_tuning_of_the_cuts(arrays, x64) -> None:
    relevance = _last(arrays["loss/heatmap"])
    _close(total_relevance(relevance), arrays["tune/total_abs"].mean(1), 1e-12)
    background = background_loss(relevance, _last(arrays["loss/mask"])).mean()
    assert float(background) == pytest.approx(float(arrays["tune/background_loss"]), rel=1e-9)
    mean, deviation, *cuts = arrays["cut/mean_std_C1_C2"]
    values = arrays["cut/values"]
    np.testing.assert_allclose([values.mean(), values.std(ddof=1)], [mean, deviation], rtol=1e-9)
    np.testing.assert_allclose(tune_cuts(values), cuts, rtol=1e-9)


# Key -> relative tolerances of value and gradient: the original computes log(1 + q) as
# -log(1 - q / (q + 1)) in float32, whose steps grow with q.
CORNERS = {
    "full_mask": (3e-7, 1e-6),
    "zero_heatmap": (3e-7, 1e-6),
    "dead_foreground_0.001": (1e-6, 3e-6),
    "dead_foreground_1e-06": (3e-6, 3e-4),
    "dead_foreground_1e-07": (3e-5, 2e-3),
    "dead_foreground_1e-08": (3e-5, 5e-3),
    "dead_foreground_1e-09": (3e-3, 0.1),
}


def test_golden_corners_in_float32(arrays) -> None:
    run = _all({"loss": partial(_loss, HeatmapLoss())})
    for key in (*CORNERS, "zero_mask", "dead_foreground_1e-11"):
        relevance, mask = (_last(arrays[f"corner/{key}/{what}"]) for what in ("heatmap", "mask"))
        values, grad = run(relevance, mask)["loss"]
        theirs = arrays[f"corner/{key}/loss"], _last(arrays[f"corner/{key}/grad"])
        assert values.dtype == grad.dtype == jnp.float32
        if key in CORNERS:
            _close(values, theirs[0], CORNERS[key][0])
            _close(grad, theirs[1], CORNERS[key][1])
            continue
        # At the cap ours is log(1e7); the original's 1 - 1e-7 rounds to 1 - 2^-23 in float32.
        np.testing.assert_allclose(values, 1 + np.log(1e7), rtol=1e-6)
        np.testing.assert_allclose(theirs[0], 1 + 23 * np.log(2), rtol=1e-6)
        _close(grad, theirs[1], 1e-6)


def test_non_finite_maps_stay_visible(arrays) -> None:
    # On purpose unlike the original, which replaces NaN and infinity and trains on.
    relevance, mask = (_last(arrays[f"corner/nan_inf/{what}"]) for what in ("heatmap", "mask"))
    assert np.isfinite(arrays["corner/nan_inf/loss"]).all()
    assert not np.isfinite(HeatmapLoss()(relevance, mask)[0]).all()


def test_logarithm_is_exact_where_the_original_is_quantised(arrays) -> None:
    x, exact = arrays["log1p/x"], arrays["log1p/exact"]
    below = np.log1p(np.float64(x)) < np.log(CAP)
    # A 1x2 image: foreground 1, background x, so that q = x at decay 0.
    relevance = np.stack((np.ones_like(x), x), -1)[:, None, None, :, None]
    mask = np.broadcast_to(np.array([1.0, 0.0], np.float32)[None, :, None], (len(x), 1, 2, 1))
    ours = np.asarray(background_loss(relevance, mask, decay=0.0))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[below], exact[below], rtol=5e-7)
    np.testing.assert_allclose(ours[~below], np.log(CAP), rtol=1e-6)
    original = np.abs(arrays["log1p/original_f32"][below] / exact[below] - 1)
    assert original.max() > 100 * np.abs(ours[below] / exact[below] - 1).max()


# ---------------------------------------------------------------- slow derivations


def _slow_gwrp(values, decay):
    total = weight = 0.0
    for i, value in enumerate(sorted(values, reverse=True)):
        w = float(np.float32(decay**i))
        total, weight = total + w * value, weight + w
    return total / weight


def _slow_loss(relevance, mask, s: HeatmapLoss, cuts):
    """(background, foreground) of one sample: relevance (m, h, w, c), mask (h, w)."""
    background, foreground = [], []
    for heatmap in relevance:
        inside, area = 0.0, 0
        for i, j, c in np.ndindex(heatmap.shape):
            if mask[i, j]:
                inside += abs(heatmap[i, j, c])
                area += 1
        for c in range(heatmap.shape[-1]):
            level = inside / (area + 1e-10) + 1e-10
            pixels = np.where(mask, 0, np.abs(heatmap[..., c]) / level).ravel()
            background.append(min(np.log1p(_slow_gwrp(pixels, s.decay) / s.scale), np.log(1e7)))
        low, high = cuts
        loss = (min(inside / low, 1) - 1) ** 2
        if inside > high:
            over = inside - high
            quadratic = s.right == "l2" or (s.right == "hybrid" and over <= low)
            loss += (over / low) ** 2 if quadratic else over if s.right == "l1" else over - low + 1
        foreground.append(loss)
    return np.mean(background), np.mean(foreground)


@pytest.mark.parametrize("right", ["l1", "l2", "hybrid"])
def test_losses_against_slow_sums(right: str, x64) -> None:
    rng = np.random.default_rng(1)
    relevance = (
        rng.normal(size=(5, 2, 4, 5, 3))
        * np.array([0.01, 0.1, 0.3, 0.55, 2.0])[:, None, None, None, None]
    )
    mask = rng.random((5, 4, 5)) < 0.4
    settings, cuts = HeatmapLoss(0.5, 2.0, 0.8, 3.0, right), (2.0, 6.0)
    total, background, foreground = settings(relevance, np.float64(mask)[..., None], cuts)
    slow = np.array(
        [_slow_loss(r, m, settings, cuts) for r, m in zip(relevance, mask, strict=True)]
    )
    _close(background, slow[:, 0], 1e-12)
    _close(foreground, slow[:, 1], 1e-12)
    _close(total, 0.5 * slow[:, 0] + 2 * slow[:, 1], 1e-12)
    assert {"below", "above"} == {"below" if v < 1 else "above" for v in slow[:, 1]}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.996])
def test_top_k_drops_nothing_that_counts(decay: float, x64) -> None:
    values = np.random.default_rng(0).exponential(size=(2, 20_000))
    program = jax.jit(gwrp, static_argnums=1)
    weights = np.float32(decay ** np.arange(20_000.0)).astype(float)
    full = -np.sort(-values) @ weights / weights.sum()
    _close(program(values, decay), full)
    sizes = re.findall(r"f64\[2,(\d+)\]", program.lower(values, decay).compile().as_text())
    assert decay == 0.996 or min(map(int, sizes)) < 250


# ---------------------------------------------------------------- edges, transforms, mistakes


EDGES = {
    "empty mask": (1.0, slice(0, 0)),
    "full mask": (1.0, slice(0, 9)),
    "one pixel": (1.0, slice(4, 5)),
    "zero map": (0.0, slice(2, 6)),
    "zero map, empty mask": (0.0, slice(0, 0)),
    "huge": (1e12, slice(2, 6)),
    "tiny": (1e-30, slice(2, 6)),
}


def test_edges_are_finite_in_float32() -> None:
    relevance = np.random.default_rng(0).normal(size=(1, 2, 9, 9, 2)).astype(np.float32)
    settings = [HeatmapLoss(norm=norm, decay=d) for norm in NORMS.values() for d in (0.0, 0.9, 1.0)]
    run = _all({str(s): partial(_loss, s) for s in settings})
    for name, (size, rows) in EDGES.items():
        mask = np.zeros((1, 9, 9, 1), np.float32)
        mask[:, rows, rows] = 1
        for key, (values, grad) in run(size * relevance, mask).items():
            assert values.dtype == grad.dtype == jnp.float32
            assert np.isfinite(values).all(), (name, key)
            assert np.isfinite(grad).all(), (name, key)
    mask = np.zeros((1, 9, 9, 1), np.float32)
    _, background, foreground = HeatmapLoss()(relevance, mask)
    np.testing.assert_allclose(background, np.log(CAP), rtol=1e-6)
    assert float(foreground[0]) == 1
    assert float(HeatmapLoss()(relevance, mask + 1)[1][0]) == 0
    assert [float(v[0]) for v in HeatmapLoss()(0 * relevance, mask + 1)] == [1, 0, 1]


def test_jit_vmap_and_batch_agree() -> None:
    rng = np.random.default_rng(2)
    relevance = rng.normal(size=(3, 2, 6, 6, 1)).astype(np.float32)
    mask = (rng.random((3, 6, 6, 1)) < 0.5).astype(np.float32)
    loss = HeatmapLoss()
    expected = np.stack(loss(relevance, mask))
    np.testing.assert_allclose(np.stack(jax.jit(loss)(relevance, mask)), expected, rtol=1e-6)
    mapped = jax.jit(jax.vmap(lambda r, m: loss(r[None], m[None])))(relevance, mask)
    np.testing.assert_allclose(np.stack(mapped)[..., 0], expected, rtol=1e-6)


def test_mistakes_name_the_value() -> None:
    relevance, mask = jnp.ones((2, 1, 4, 4, 1)), jnp.ones((2, 4, 4, 1))
    for bad in (mask[..., 0], mask[:1], mask[:, None]):
        with pytest.raises(ValueError, match=re.escape(f"mask {bad.shape} does not fit")):
            background_loss(relevance, bad)
        with pytest.raises(ValueError, match="does not fit relevance"):
            foreground_loss(relevance, bad, 1.0, 25.0)
    with pytest.raises(ValueError, match="unknown norm 'max'; legal values: abs_mean"):
        background_loss(relevance, mask, norm="max")
    with pytest.raises(ValueError, match="unknown right form 'L3'; legal values: l1, l2"):
        foreground_loss(relevance, mask, 1.0, 25.0, right="L3")
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got"):
            gwrp(jnp.ones(3), decay)
    for totals in ([1.0], [], [1.0, float("nan")], [1.0, float("inf")], [0.0, 0.0]):
        with pytest.raises(ValueError, match=f"at least 2 finite .* got {len(totals)} with mean"):
            tune_cuts(np.array(totals))


def test_tuned_cuts_by_hand() -> None:
    # Little spread: C1 = mu - 3 s, C2 = mu + 3 s; much spread: C1 = mu / 5, C2 = 25 C1.
    np.testing.assert_allclose(tune_cuts(np.array([9.0, 11.0, 10.0])), (7.0, 13.0))
    np.testing.assert_allclose(tune_cuts(np.array([0.0, 0.0, 0.0, 100.0])), (5.0, 125.0))
