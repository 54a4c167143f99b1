"""Depthwise, doubling and deformable convolutions, dropout and graphs, against slow sums."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from touchstone_jax.layers.deformable import deformable, sample
from touchstone_jax.layers.depthwise import depthwise, depthwise_up
from touchstone_jax.layers.dropout import Dropout
from touchstone_jax.layers.resize import block_maxima, nearest, trilinear
from touchstone_jax.layers.transposed import double
from touchstone_jax.models import graph

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def slow_depthwise(x, kernel, strides, dilation):
    """One output voxel and tap after the other."""
    sides = [-(-n // s) for n, s in zip(x.shape[1:4], strides, strict=True)]
    out = np.zeros((len(x), *sides, x.shape[-1]))
    for at in itertools.product(*map(range, sides)):
        for tap in itertools.product(*map(range, kernel.shape[:3])):
            i = [
                a * s + dilation * (t - k // 2)
                for a, s, t, k in zip(at, strides, tap, kernel.shape[:3], strict=True)
            ]
            if all(0 <= n < side for n, side in zip(i, x.shape[1:4], strict=True)):
                out[(slice(None), *at)] += x[(slice(None), *i)] * kernel[(*tap, 0)]
    return out


@pytest.mark.parametrize(
    ("kernel", "strides", "dilation"),
    [((3, 3, 3), (1, 1, 1), 1), ((3, 1, 3), (2, 2, 1), 1), ((1, 3, 3), (1, 1, 1), 2)],
)
def test_depthwise_convolutions_are_the_slow_sum(kernel, strides, dilation, x64):
    x, w = normal(2, 5, 4, 6, 3), normal(*kernel, 1, 3)
    expected = slow_depthwise(x, w, strides, dilation)
    for lowering in ("taps", "grouped"):
        got = depthwise(
            jnp.asarray(x), jnp.asarray(w), strides, dilation=dilation, lowering=lowering
        )
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_both_depthwise_lowerings_have_one_gradient(x64):
    x, w, g = normal(1, 4, 4, 4, 2), normal(3, 3, 3, 1, 2), normal(1, 4, 4, 4, 2)

    def pull(lowering):
        def loss(x, w):
            return (depthwise(x, w, dilation=2, lowering=lowering) * g).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(x, w)

    for a, b in zip(pull("taps"), pull("grouped"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def slow_transposed(x, kernel, outputs, pad, sides):
    """What each input voxel adds to the outputs, in PyTorch's terms, stride 2."""
    out = np.zeros((len(x), *sides, outputs))
    for at in itertools.product(*map(range, x.shape[1:4])):
        for tap in itertools.product(*map(range, kernel.shape[:3])):
            o = [2 * a + t - pad for a, t in zip(at, tap, strict=True)]
            if all(0 <= n < side for n, side in zip(o, sides, strict=True)):
                weights = kernel[tap]
                value = x[(slice(None), *at)]
                value = value * weights[0] if len(weights) == 1 else value @ weights
                out[(slice(None), *o)] += value
    return out


@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_enlarging_is_the_slow_sum(size, x64):
    x, w = normal(1, 2, 3, 4, 2), normal(size, size, size, 1, 2)
    expected = slow_transposed(x, w, 2, size // 2, (3, 5, 7))
    got = jax.jit(depthwise_up)(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_doubling_is_the_slow_sum(size, x64):
    x, w = normal(1, 3, 2, 4, 3), normal(size, size, size, 3, 2)
    expected = slow_transposed(x, w, 2, size // 2, (6, 4, 8))
    got = jax.jit(double)(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_even_kernels_are_refused():
    for function in (depthwise, double):
        with pytest.raises(ValueError, match=r"kernel \(2, 2, 2\): expected odd sizes"):
            function(jnp.zeros((1, 2, 2, 2, 1)), jnp.zeros((2, 2, 2, 1, 1)))


def slow_sample(x, point):
    """Trilinear by the eight neighbours, one after the other."""
    total = np.zeros(x.shape[-1])
    for corner in itertools.product((0, 1), repeat=3):
        at = np.floor(point).astype(int) + corner
        if ((at >= 0) & (at < x.shape[:3])).all():
            total += x[tuple(at)] * np.prod(1 - np.abs(point - at))
    return total


def test_samples_are_the_slow_trilinear_ones(x64):
    x = normal(2, 3, 4, 2, 2)
    points = RNG.uniform(-2, 5, size=(2, 40, 3))
    points[0, 0], points[0, 1] = (1, 2, 1), (2, 3, 1)  # voxel centres, one in a corner
    got = jax.jit(sample)(jnp.asarray(x), jnp.asarray(points))
    expected = [[slow_sample(v, p) for p in row] for v, row in zip(x, points, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(got[0, 0], x[0, 1, 2, 1])


def test_deformable_convolutions_are_the_slow_sum(x64):
    x, w = normal(1, 3, 2, 3, 2), normal(3, 3, 3, 2, 2)
    offsets = normal(1, 3, 2, 3, 81)
    expected = np.zeros((1, 3, 2, 3, 2))
    for at in itertools.product(range(3), range(2), range(3)):
        for number, tap in enumerate(itertools.product(range(3), repeat=3)):
            point = np.add(at, tap) - 1 + offsets[0][at][3 * number : 3 * number + 3]
            expected[0][at] += slow_sample(x[0], point) @ w[tap]
    got = jax.jit(deformable)(jnp.asarray(x), jnp.asarray(offsets), jnp.asarray(w))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_dropout_zeroes_its_share_and_goes_on():
    layer = Dropout(0.25, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 10, 10, 10))
    assert layer(x) is x
    layer.train()
    first, second = layer(x), layer(x)
    assert (first != second).any()
    for made in (first, second):
        assert set(np.unique(made).tolist()) == {0.0, np.float32(1 / 0.75)}
        assert abs(float((made == 0).mean()) - 0.25) < 0.03
    whole = Dropout(0.5, whole_channels=True, rngs=nnx.Rngs(0))
    whole.train()
    made = np.asarray(whole(x)).reshape(4, 100, 10)
    assert (made == made[:, :1]).all() and 0 < (made == 0).mean() < 1
    with pytest.raises(ValueError, match="dropout=1; expected a share"):
        Dropout(1, rngs=nnx.Rngs(0))


def test_interpolation_keeps_the_corners(x64):
    x = normal(2, 3, 1, 4, 2)
    expected = x
    for axis, size in enumerate((5, 3, 4), start=1):
        old = x.shape[axis]
        at = np.linspace(0, old - 1, size)
        line = lambda v, at=at, old=old: np.interp(at, np.arange(old), v)  # noqa: E731
        expected = np.apply_along_axis(line, axis, expected)
    got = jax.jit(trilinear, static_argnums=1)(jnp.asarray(x), (5, 3, 4))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    half = jax.jit(trilinear, static_argnums=1)(jnp.asarray(x, jnp.bfloat16), (5, 3, 4))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.03)


def test_blocks_and_copies():
    x = normal(1, 4, 2, 6, 3).astype(np.float32)
    blocks = x.reshape(1, 2, 2, 1, 2, 3, 2, 3)
    np.testing.assert_array_equal(block_maxima(jnp.asarray(x)), blocks.max((2, 4, 6)))
    copies = nearest(jnp.asarray(x), (2, 1, 3))
    np.testing.assert_array_equal(copies, np.repeat(np.repeat(x, 2, 1), 3, 3))


def test_maxima_go_back_where_they_stood():
    x = np.float32(RNG.integers(0, 3, size=(1, 4, 2, 3, 2)))  # with ties
    pooled, chosen = graph._pooled(jnp.asarray(x), (2, 2, 1))
    back = graph._unpooled(jnp.concatenate([pooled, -pooled], -1), chosen, (2, 2, 1))
    expected = np.zeros((1, 4, 2, 3, 4), np.float32)
    for a, c_, c in itertools.product(range(2), range(3), range(2)):
        block = x[0, 2 * a : 2 * a + 2, :, c_, c]
        i, j = np.unravel_index(block.argmax(), block.shape)  # the first, as PyTorch takes it
        assert pooled[0, a, 0, c_, c] == block.max()
        expected[0, 2 * a + i, j, c_, c], expected[0, 2 * a + i, j, c_, c + 2] = (
            block.max(),
            -block.max(),
        )
    np.testing.assert_array_equal(back, expected)


def test_neighbours_are_the_nearest_directions(x64):
    x, keys, bias = normal(1, 6, 4), normal(1, 9, 4), 0.1 * normal(1, 6, 9)
    got = graph.nearest(jnp.asarray(x), jnp.asarray(keys), jnp.asarray(bias), 3)
    unit = [a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x[0], keys[0])]
    for i in range(6):
        distance = np.square(unit[0][i] - unit[1]).sum(-1) + bias[0, i]
        assert got[0, i].tolist() == np.argsort(distance)[:3].tolist()
    blank = graph.nearest(jnp.zeros((1, 2, 4)), jnp.asarray(keys), jnp.zeros((1, 2, 9)), 2)
    assert blank.shape == (1, 2, 2)  # no NaN from a vector without direction
