"""Heatmap losses of drawn heatmaps and masks: finite with a finite gradient, as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from isnet_jax.losses import CAP, HeatmapLoss, background_loss, foreground_sums

MAPS, MASKS = (2, 2, 4, 3, 1), (2, 4, 3, 1)
RELEVANCE = hnp.arrays(
    np.float32,
    MAPS,
    elements=st.one_of(
        st.sampled_from([0.0, -0.0, 1e-45, 1e-30, -1e-10, 1.0, -1.0, 1e10, -1e18]),
        st.floats(-100, 100, width=32),
    ),
    fill=st.nothing(),
)
MASK = st.one_of(
    st.sampled_from([0.0, 1.0]).map(lambda v: np.full(MASKS, v, np.float32)),
    hnp.arrays(np.float32, MASKS, elements=st.sampled_from([0.0, 1.0])),
)
_FIRST = np.float32(np.arange(4) == 0).reshape(1, 4, 1, 1)
LOSSES = {norm: HeatmapLoss(norm=norm) for norm in ("abs_mean", "mean", "none")}
_STEPS = {
    norm: jax.jit(jax.value_and_grad(lambda r, m, loss=loss: loss(r, m)[0].sum()))
    for norm, loss in LOSSES.items()
}
_BACKGROUND = jax.jit(background_loss)


@given(RELEVANCE, MASK, st.sampled_from(list(LOSSES)))
@example(np.zeros(MAPS, np.float32), np.zeros(MASKS, np.float32), "abs_mean")
@example(np.zeros(MAPS, np.float32), np.ones(MASKS, np.float32), "mean")
@example(np.full(MAPS, -1e-10, np.float32), np.ones(MASKS, np.float32) * _FIRST, "mean")
def test_finite_maps_give_finite_losses_and_gradients(
    relevance: np.ndarray, mask: np.ndarray, norm: str
) -> None:
    value, gradient = _STEPS[norm](relevance, mask)
    assert np.isfinite(value) and value >= 0
    assert np.isfinite(gradient).all()


@given(RELEVANCE, MASK, st.sampled_from([2.0**-8, 0.5, 4.0, 2.0**10]))
def test_the_background_s_loss(relevance: np.ndarray, mask: np.ndarray, factor: float) -> None:
    plain = np.asarray(_BACKGROUND(relevance, mask))
    assert (plain >= 0).all() and (plain <= np.log(CAP) * (1 + 1e-6)).all()
    np.testing.assert_array_equal(plain, _BACKGROUND(-relevance, mask))
    # A mask without background leaves nothing to lose.
    np.testing.assert_array_equal(_BACKGROUND(relevance, np.ones_like(mask)), 0)
    # Turning the image over moves no relevance into or out of the foreground.
    turned = _BACKGROUND(relevance[:, :, ::-1].copy(), mask[:, ::-1].copy())
    np.testing.assert_allclose(turned, plain, rtol=1e-4, atol=1e-5)
    level = (
        np.asarray(foreground_sums(relevance, mask)) / np.maximum(mask.sum((1, 2, 3)), 1)[:, None]
    )
    if (level > 1e-2).all() and (np.abs(relevance) < 1e6).all():  # else the stabiliser shows
        scaled = _BACKGROUND(relevance * np.float32(factor), mask)
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    relevance, mask = np.ones(MAPS, np.float32), np.zeros(MASKS, np.float32)
    mask[:, :2] = 1
    relevance[0, 0, 0, 0, 0] = value
    found = np.asarray(HeatmapLoss()(jnp.asarray(relevance), mask)[0])
    assert not np.isfinite(found[0]) and np.isfinite(found[1])


@pytest.mark.parametrize(
    "shape", [(2, 4, 3), (2, 4, 3, 1, 1), (1, 4, 3, 1), (3, 4, 3, 1), (2,), ()]
)
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mask \(.*\) does not fit relevance \(2, 2, 4, 3, 1\)"):
        background_loss(jnp.ones(MAPS), jnp.ones(shape))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_the_type_of_a_mask_is_no_matter(dtype: type) -> None:
    relevance = np.random.default_rng(0).normal(size=MAPS).astype(np.float32)
    mask = np.random.default_rng(1).random(MASKS) > 0.5
    expected = background_loss(jnp.asarray(relevance), jnp.asarray(mask, np.float32))
    found = background_loss(jnp.asarray(relevance), jnp.asarray(mask.astype(dtype)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
