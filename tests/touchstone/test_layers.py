"""Layers of 3-D networks against slow sums, flax and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from touchstone_jax import layers

RNG = np.random.default_rng(0)
# Programs run once: compiling is the cost.
QUICKLY = {"xla_backend_optimization_level": 0}


def normal(*shape, dtype=np.float64):
    return RNG.normal(size=shape).astype(dtype)


def slow_convolution(x, kernel, strides):
    """One output voxel after the other, in float64."""
    pads = [(0, 0), *((k // 2, k // 2) for k in kernel.shape[:3]), (0, 0)]
    padded = np.pad(x, pads)
    shape = [-(-n // s) for n, s in zip(x.shape[1:4], strides, strict=True)]
    out = np.zeros((len(x), *shape, kernel.shape[-1]))
    for at in itertools.product(*map(range, shape)):
        low = [i * s for i, s in zip(at, strides, strict=True)]
        box = tuple(slice(a, a + k) for a, k in zip(low, kernel.shape[:3], strict=True))
        out[(slice(None), *at)] = np.tensordot(padded[(slice(None), *box)], kernel, 4)
    return out


@pytest.mark.parametrize(
    ("kernel", "strides", "channels"),
    [
        ((3, 3, 3), (1, 1, 1), 2),
        ((3, 3, 3), (2, 2, 2), 2),
        ((1, 3, 3), (1, 2, 2), 3),
        ((3, 5, 1), (2, 1, 3), 1),
        ((3, 1, 3), (2, 2, 1), 64),
    ],
)
def test_convolutions_are_the_slow_sum(kernel, strides, channels, x64):
    x, w = normal(2, 5, 4, 6, channels), normal(*kernel, channels, 3)
    expected = slow_convolution(x, w, strides)
    for lowering in ("direct", "planes"):
        got = layers.convolve(jnp.asarray(x), jnp.asarray(w), strides, lowering=lowering)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_both_lowerings_have_one_gradient(x64):
    x, w, g = normal(1, 4, 4, 4, 2), normal(3, 3, 3, 2, 2), normal(1, 2, 2, 2, 2)

    def loss(x, w, lowering):
        return (layers.convolve(x, w, (2, 2, 2), lowering=lowering) * g).sum()

    pull = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2, compiler_options=QUICKLY)
    for a, b in zip(pull(x, w, "direct"), pull(x, w, "planes"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match=r"kernel \(2, 3, 3\): expected odd"):
        layers.convolve(jnp.zeros((1, 4, 4, 4, 1)), jnp.zeros((2, 3, 3, 1, 1)))


@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 3)])
def test_upsampling_is_the_slow_sum_and_flaxs(strides, x64):
    x, w = normal(2, 2, 3, 2, 3), normal(*strides, 3, 4)
    expected = np.zeros((2, *(n * s for n, s in zip(x.shape[1:4], strides, strict=True)), 4))
    for at in itertools.product(*map(range, expected.shape[1:4])):
        source = tuple(a // s for a, s in zip(at, strides, strict=True))
        tap = tuple(a % s for a, s in zip(at, strides, strict=True))
        expected[(slice(None), *at)] = x[(slice(None), *source)] @ w[tap]
    np.testing.assert_allclose(layers.upsample(x, jnp.asarray(w)), expected, rtol=1e-12)
    how = {"padding": "VALID", "use_bias": False, "param_dtype": np.float64}
    theirs = nnx.ConvTranspose(3, 4, strides, strides, **how, rngs=nnx.Rngs(0))
    theirs.kernel[...] = jnp.asarray(w[::-1, ::-1, ::-1])  # theirs meets the taps backwards
    np.testing.assert_allclose(theirs(jnp.asarray(x)), expected, rtol=1e-12)


def test_upsampling_has_no_convolution_in_either_direction():
    layer = layers.UpConv(4, 2, (2, 2, 2), rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)
    x = jnp.zeros((1, 2, 2, 2, 4))
    forward = str(jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x))(params, x))
    backward = str(
        jax.make_jaxpr(jax.grad(lambda p, x: nnx.merge(graph, p)(x).sum(), (0, 1)))(params, x)
    )
    for program in (forward, backward):
        assert "conv_general_dilated" not in program and "dot_general" in program
    assert "conv_general_dilated" in str(
        jax.make_jaxpr(
            nnx.ConvTranspose(4, 2, (2,) * 3, (2,) * 3, use_bias=False, rngs=nnx.Rngs(0))
        )(x)
    )


def test_instance_norm_is_its_formula_and_survives_constants(x64):
    x = normal(2, 3, 4, 5, 2) * 7 + 100
    layer = layers.InstanceNorm(2)
    layer.scale[...] = jnp.asarray([2.0, -1.0], jnp.float32)
    layer.bias[...] = jnp.asarray([0.5, 3.0], jnp.float32)
    got = layer(jnp.asarray(x))
    for b, c in itertools.product(range(2), range(2)):
        one = x[b, ..., c]
        expected = (one - one.mean()) / np.sqrt(one.var() + 1e-5) * [2, -1][c] + [0.5, 3][c]
        np.testing.assert_allclose(got[b, ..., c], expected, rtol=1e-9, atol=1e-9)


def test_a_constant_channel_becomes_the_shift_with_finite_gradient():
    layer = layers.InstanceNorm(1)
    flat = jnp.full((1, 2, 2, 2, 1), 1e4, jnp.float32)
    assert np.asarray(layer(flat)).tolist() == np.zeros((1, 2, 2, 2, 1)).tolist()
    slope = jax.jit(jax.grad(lambda x: layer(x)[0, 0, 0, 0, 0]), compiler_options=QUICKLY)
    assert np.isfinite(slope(flat)).all()


def test_bfloat16_norm_computes_in_float32():
    # 256 + k/64 has no room in bfloat16's eight bits: a mean taken in it would be off by units.
    x = jnp.asarray(300 + RNG.normal(size=(1, 8, 8, 8, 1)) * 40, jnp.bfloat16)
    got = layers.InstanceNorm(1)(x)
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    assert np.abs(np.asarray(got, np.float64) - expected).max() < 0.01


def test_parameters_are_float32_and_he_initialised():
    unit = layers.ConvNormAct(16, 64, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {a.dtype for a in jax.tree.leaves(nnx.state(unit))} == {jnp.dtype("float32")}
    assert float(unit.conv.kernel[...].std()) == pytest.approx((2 / 1.0001 / 432) ** 0.5, rel=0.02)
    up = layers.UpConv(64, 16, rngs=nnx.Rngs(0))
    assert float(up.kernel[...].std()) == pytest.approx((2 / 1.0001 / 128) ** 0.5, rel=0.03)
    assert unit(jnp.zeros((1, 2, 2, 2, 16))).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda r: layers.Conv(1, 1, (3, 3), rngs=r), r"kernel=\(3, 3\); expected an integer"),
        (lambda r: layers.Conv(1, 1, strides=0, rngs=r), "strides=0; expected an integer from 1"),
        (
            lambda r: layers.Conv(1, 1, lowering="cpu", rngs=r),
            "lowering='cpu'; legal: auto, direct",
        ),
    ],
)
def test_bad_sizes_are_told(make, said):
    with pytest.raises(ValueError, match=said):
        make(nnx.Rngs(0))
