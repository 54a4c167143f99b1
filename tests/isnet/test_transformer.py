"""AttnLRP and CP-LRP: textbook maps in a slow form, true outer derivatives, conservation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp
from isnet_jax.lrp import ops
from isnet_jax.lrp.layers import Dense
from isnet_jax.lrp.transformer import Activation, Attention, GroupNorm, LayerNorm

PRESETS = ("gradient_x_input", "attn_lrp", "cp_lrp")


class Encoder(nnx.Module):
    """One pre-norm block, the first token classified."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = Dense(5, 8, rngs=rngs)
        self.norm1, self.norm2 = LayerNorm(8, rngs=rngs), LayerNorm(8, rngs=rngs)
        self.attention = Attention(8, 2, rngs=rngs)
        self.up, self.down = Dense(8, 16, rngs=rngs), Dense(16, 8, rngs=rngs)
        self.gelu = Activation("gelu")
        self.head = Dense(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(self.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


def double(model):
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda v: v.astype(jnp.float64), nnx.to_pure_dict(state))
    return nnx.merge(graphdef, state)


@pytest.fixture
def encoder(x64):
    return double(Encoder())


@pytest.fixture
def tokens(x64):
    return jax.random.normal(jax.random.key(1), (2, 4, 5), jnp.float64)


def maps(model, x, composite):
    graphs = isnet.programs(model, composite)
    params, rest = isnet.variables(model)

    def relevance(params):
        f = isnet.bind(graphs.views[0].infer, params, rest)
        return lrp.relevance(f, x, lrp.EachLogit(), terminal=False)

    return relevance, params, graphs, rest


def richardson(f, params, direction):
    def central(h):
        up = jax.tree.map(lambda p, d: p + h * d, params, direction)
        down = jax.tree.map(lambda p, d: p - h * d, params, direction)
        return (f(up) - f(down)) / (2 * h)

    return (4 * central(5e-5) - central(1e-4)) / 3


@pytest.mark.parametrize("preset", PRESETS)
def test_the_outer_derivative_is_true(encoder, tokens, preset):
    relevance, params, graphs, rest = maps(encoder, tokens, lrp.create(preset))

    @jax.jit
    def loss(params):
        r = relevance(params).relevance
        return jnp.sin(r).sum() + jnp.square(r).sum()

    grads = jax.jit(jax.grad(loss))(params)
    rng = np.random.default_rng(0)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        direction = jax.tree_util.tree_map_with_path(
            lambda at, v, path=path: rng.normal(size=v.shape) if at == path else jnp.zeros_like(v),
            params,
        )
        expected = sum(
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
        )
        numeric = richardson(loss, params, direction)
        scale = max(abs(float(expected)), 1e-4 * float(jnp.linalg.norm(grad)) + 1e-6)
        assert abs(float(numeric - expected)) <= 1e-6 * scale + 1e-9, path

    def entropy(graphdef):
        def f(params):
            return isnet.cross_entropy(
                isnet.bind(graphdef, params, rest)(tokens)[0], jnp.array([0, 1])
            ).mean()

        return f

    def through_the_view(params):
        return isnet.cross_entropy(relevance(params).logits, jnp.array([0, 1])).mean()

    plain = jax.grad(entropy(graphs.infer))(params)
    jax.tree.map(np.testing.assert_array_equal, jax.grad(through_the_view)(params), plain)


def test_cp_lrp_conserves_without_biases(encoder, tokens):
    # Fresh biases are zero; LayerNorm's mean and sigma, GELU's gate and the attention weights are
    # constants of the map, so what remains is linear.
    relevance, params, _, _ = maps(encoder, tokens, lrp.create("cp_lrp"))
    found = relevance(params)
    gap = found.quantities - found.relevance.sum((2, 3))
    np.testing.assert_allclose(gap, 0, atol=1e-12)


def attention_by_hand(layer, x, m, preset):
    """Input multiplier of the attention core by explicit Jacobians (Achtibat et al. 2024)."""
    heads, features = layer.heads, x.shape[-1]
    shape = (*x.shape[:2], heads, features // heads)
    q, k, v = (part.reshape(shape) for part in jnp.split(layer.qkv(x), 3, axis=-1))

    def core(a, v):
        return layer.out(jnp.einsum("bqkh,bkhd->bqhd", a, v).reshape(x.shape))

    scores = jnp.einsum("bqhd,bkhd->bqkh", q, k) / np.sqrt(shape[-1])
    weights = jax.nn.softmax(scores, 2)
    half = 0.5 if preset == "attn_lrp" else 1.0
    m_a, m_v = (half * g for g in jax.vjp(core, weights, v)[1](m))
    m_q = m_k = jnp.zeros(shape)
    if preset == "attn_lrp":
        jacobian = weights[:, :, :, None] * (
            jnp.eye(4)[None, None, :, :, None] - weights[:, :, None]
        )
        m_s = jnp.einsum("bqkh,bqklh->bqlh", m_a, jacobian)
        m_q = 0.5 * jnp.einsum("bqkh,bkhd->bqhd", m_s, k) / np.sqrt(shape[-1])
        m_k = 0.5 * jnp.einsum("bqkh,bqhd->bkhd", m_s, q) / np.sqrt(shape[-1])
    kernels = jnp.split(layer.qkv.kernel[...], 3, axis=-1)
    return sum(
        part.reshape(x.shape) @ kernel.T
        for part, kernel in zip((m_q, m_k, m_v), kernels, strict=True)
    )


@pytest.mark.parametrize("preset", ["attn_lrp", "cp_lrp"])
def test_attention_equals_the_rules_written_out(x64, preset):
    layer = double(Attention(8, 2, rngs=nnx.Rngs(1)))
    x, m = (jax.random.normal(jax.random.key(i), (2, 4, 8), jnp.float64) for i in (0, 1))
    view = lrp.create(preset).view(layer)
    ours = jax.vjp(view, x)[1](m)[0]
    np.testing.assert_allclose(ours, attention_by_hand(layer, x, m, preset), rtol=1e-10, atol=1e-12)


def test_layer_norm_and_gate_are_constants(x64):
    x, m = (jax.random.normal(jax.random.key(i), (3, 6), jnp.float64) for i in (0, 1))
    norm = lrp.create("attn_lrp").view(double(LayerNorm(6, rngs=nnx.Rngs(0))))
    sigma = np.sqrt(np.var(x, axis=-1, keepdims=True) + norm.epsilon)
    expected = (np.asarray(m) - np.asarray(m).mean(-1, keepdims=True)) / sigma
    np.testing.assert_allclose(jax.vjp(norm, x)[1](m)[0], expected, rtol=1e-12)
    for name, reference in (
        ("gelu", lambda v: jax.nn.gelu(v, approximate=False)),
        ("silu", jax.nn.silu),
    ):
        layer = Activation(name)
        np.testing.assert_allclose(layer(x), reference(x), rtol=1e-12)
        layer.rule = lrp.AttnLRP()
        np.testing.assert_allclose(jax.vjp(layer, x)[1](m)[0], m * reference(x) / x, rtol=1e-10)


def test_group_norm_is_flaxs():
    layer = GroupNorm(6, 3, rngs=nnx.Rngs(0))
    plain = nnx.GroupNorm(6, num_groups=3, epsilon=1e-5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(layer(x), plain(x), rtol=1e-4, atol=1e-5)


def test_plain_layers_hold_no_custom_derivative():
    model = Encoder()
    jaxpr = str(jax.make_jaxpr(lambda x: model(x))(jnp.ones((1, 4, 5))))
    assert "custom_vjp" not in jaxpr
    assert jax.grad(lambda x: ops.halve_in_map(x))(1.0) == 0.5


def test_heads_must_divide_features():
    with pytest.raises(ValueError, match="8 features are no multiple of 3 heads"):
        Attention(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown activation 'glue'; did you mean 'gelu'"):
        Activation("glue")
