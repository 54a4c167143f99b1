"""Windows, attention, relative positions and the transformer block against plain NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from touchstone_jax.layers import attention
from touchstone_jax.layers.dropout import Dropout
from touchstone_jax.layers.windows import PatchConv, patches, unwindows, windows
from touchstone_jax.models.swin import Merging, SwinBlock, regions
from touchstone_jax.models.vit import ViT

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_windows_are_boxes_and_come_back():
    x = normal(2, 4, 6, 2, 3)
    cut = windows(jnp.asarray(x), (2, 3, 1))
    assert cut.shape == (2, 8, 6, 3)
    # The sixth window: second along x, first along y, second along z.
    np.testing.assert_array_equal(cut[:, 5], x[:, 2:4, 0:3, 1:2].reshape(2, 6, 3))
    np.testing.assert_array_equal(unwindows(cut, (2, 3, 1), (4, 6, 2)), x)
    with pytest.raises(ValueError, match=r"volume \(4, 6, 2\) cannot be cut into windows"):
        windows(jnp.asarray(x), (3, 3, 1))


def test_patches_have_the_channel_fastest():
    x = normal(1, 4, 2, 2, 3)
    cut = patches(jnp.asarray(x), (2, 2, 1))
    assert cut.shape == (1, 2, 1, 2, 12)
    np.testing.assert_array_equal(cut[0, 1, 0, 1], x[0, 2:4, 0:2, 1:2].reshape(-1))


def test_a_convolution_of_patches_is_the_strided_one():
    x, layer = jnp.asarray(normal(2, 4, 6, 4, 3)), PatchConv(3, 5, (2, 3, 4), rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(normal(5))
    expected = jax.lax.conv_general_dilated(
        x, layer.kernel[...], (2, 3, 4), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    expected = expected + layer.bias[...].reshape(1, 1, 1, 1, -1)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def plain_attention(q, k, v, bias):
    """One head of one sample after the other, in float64."""
    out = np.zeros(q.shape)
    for b in np.ndindex(q.shape[:-3]):
        for h in range(q.shape[-2]):
            one = (a[(*b, slice(None), h)].astype(np.float64) for a in (q, k, v))
            query, key, value = one
            score = query @ key.T / np.sqrt(query.shape[-1])
            if bias is not None:
                heads = (*q.shape[:-3], q.shape[-2], *score.shape)
                score = score + np.broadcast_to(bias, heads)[(*b, h)]
            out[(*b, slice(None), h)] = softmax(score) @ value
    return out


@pytest.mark.parametrize(
    "bias", [None, (5, 7), (1, 7), (2, 5, 7), (3, 2, 5, 7), (4, 1, 2, 5, 7), (1, 3, 1, 5, 7)]
)
def test_attention_is_the_formula(bias):
    q, k, v = normal(4, 3, 5, 2, 6), normal(4, 3, 7, 2, 6), normal(4, 3, 7, 2, 6)
    if bias is not None:
        bias = normal(*bias)
    got = attention.attend(
        *map(jnp.asarray, (q, k, v)), None if bias is None else jnp.asarray(bias)
    )
    np.testing.assert_allclose(got, plain_attention(q, k, v, bias), rtol=1e-5, atol=1e-5)


def test_flash_attention_is_taken_where_it_can_be(monkeypatch):
    def fits(t, d, dtype=jnp.bfloat16, bias=None):
        array = jax.ShapeDtypeStruct((2, t, 3, d), dtype)
        return attention.flash_fits(array, array, bias)

    assert not fits(216, 64)
    for capability, flash in (("9.0", True), ("8.0", True), ("7.5", False), ("gfx90a", False)):
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert fits(216, 64) == flash
    device.compute_capability = "12.0"
    assert fits(216, 64) and fits(343, 16)
    assert not fits(216, 64, jnp.float32) and not fits(216, 12) and not fits(216, 256)
    bias = np.zeros((3, 1, 1))
    assert fits(216, 64, bias=bias) and not fits(343, 64, bias=bias)
    asked = []

    def spy(q, k, v, bias, implementation):
        asked.append((implementation, None if bias is None else bias.dtype))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    half, exact = jnp.zeros((1, 2, 1, 8), jnp.bfloat16), jnp.zeros((1, 2, 1, 8), jnp.float32)
    one = jnp.zeros((1, 2, 2))
    for x, bias in ((half, None), (half, one), (exact, one)):
        attention.attend(x, x, x, bias)
    assert asked == [("cudnn", None), ("cudnn", jnp.bfloat16), ("xla", jnp.float32)]


def test_offsets_of_a_window_have_one_number_each():
    index = attention.relative_index((2, 3, 2))
    at = [(x, y, z) for x in range(2) for y in range(3) for z in range(2)]
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            dx, dy, dz = (p - q + s - 1 for p, q, s in zip(a, b, (2, 3, 2), strict=True))
            assert index[i, j] == (dx * 5 + dy) * 3 + dz
    layer = attention.RelativeBias((2, 3, 2), 4, rngs=nnx.Rngs(0))
    table = layer.relative_position_bias_table[...]
    assert table.shape == (45, 4) and layer().shape == (4, 12, 12)
    # Fewer tokens: the corner of the whole window's, as the original has it.
    np.testing.assert_array_equal(layer(5), layer()[:, :5, :5])
    assert layer(5)[2, 1, 4] == table[index[1, 4], 2]


def layer_norm(x, layer):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    made = (x - mean) / np.sqrt(variance + 1e-5)
    return made * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def linear(x, layer):
    made = x @ np.asarray(layer.kernel[...], np.float64)
    return made if layer.bias is None else made + np.asarray(layer.bias[...])


def scrambled(module):
    """The module with parameters that all matter."""
    graphdef, state = nnx.split(module)
    draw = jax.tree.map(lambda p: jnp.asarray(0.5 * normal(*p.shape)), state)
    return nnx.merge(graphdef, draw)


@pytest.mark.parametrize("heads_fastest", [False, True])
def test_a_transformer_block_is_the_formula(heads_fastest):
    how = {"heads_fastest": heads_fastest, "rngs": nnx.Rngs(0)}
    block, x = scrambled(attention.TransformerBlock(6, 2, 9, **how)), normal(2, 5, 6)
    parts = linear(layer_norm(x, block.norm1), block.attn.qkv).reshape(2, 5, 3, 2, 3)
    made = plain_attention(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], None)
    made = (made.swapaxes(-1, -2) if heads_fastest else made).reshape(2, 5, 6)
    middle = x + linear(made, block.attn.proj)
    hidden = linear(layer_norm(middle, block.norm2), block.mlp.linear1)
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    expected = middle + linear(hidden, block.mlp.linear2)
    np.testing.assert_allclose(jax.jit(lambda x: block(x))(x), expected, rtol=1e-4, atol=1e-4)
    half = jax.jit(lambda x: attention.attend(x, x, x, x[:1, :1, :, :1]))
    assert half(jnp.ones((2, 5, 5, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="heads=4 does not divide 6 channels"):
        attention.SelfAttention(6, 4, rngs=nnx.Rngs(0))


def test_whole_samples_are_dropped_together():
    layer = Dropout(0.5, whole_samples=True, rngs=nnx.Rngs(0))
    layer.deterministic = False
    made = np.asarray(layer(jnp.ones((64, 2, 3, 4))))
    first = made[:, :1, :1, :1]
    assert (made == first).all() and set(np.unique(first)) == {0.0, 2.0}


def test_a_vit_keeps_what_its_blocks_gave_and_refuses_other_volumes():
    how = {"dtype": "float32", "rngs": nnx.Rngs(0)}
    size = {"width": 6, "hidden": 8, "layers": 3, "heads": 2}
    vit, x = ViT((4, 4, 8), (2, 2, 4), 2, **size, how=how), jnp.asarray(normal(1, 4, 4, 8, 2))
    last, kept = jax.jit(lambda x: vit(x, taps=(0, 2)))(x)
    assert [k.shape for k in kept] == [(1, 8, 6)] * 2 and vit.volume(last).shape == (1, 2, 2, 2, 6)
    np.testing.assert_allclose(last, layer_norm(np.asarray(kept[1]), vit.norm), atol=1e-5)
    # Token 5 is the second along x, the first along y, the second along z.
    box = np.asarray(x)[:, 2:4, 0:2, 4:8].reshape(-1)
    start = vit.patch_embedding(x)[0, 5] - vit.patch_embedding.position_embeddings[...][0, 5]
    layer = vit.patch_embedding.patch_embeddings["perceptron"]
    np.testing.assert_allclose(start, linear(box, layer), atol=1e-5)
    with pytest.raises(ValueError, match=r"volume \(4, 4, 4\); expected \(4, 4, 8\)"):
        vit(x[:, :, :, :4])
    with pytest.raises(ValueError, match=r"must be a multiple of the token's patch \(3, 2, 2\)"):
        ViT((4, 4, 8), (3, 2, 2), 2, **size, how=how)
    with pytest.raises(ValueError, match="embedding='linear'; legal: perceptron, conv"):
        ViT((4, 4, 8), (2, 2, 4), 2, **size, embedding="linear", how=how)


def test_a_shifted_window_has_regions_that_were_neighbours_before():
    sides, window, shift = (6, 4, 2), (3, 4, 2), (1, 0, 0)
    found = regions(sides, window, shift)
    at = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1)
    before = np.roll(at, -1, 0)[None].astype(np.float32)
    places = np.asarray(windows(jnp.asarray(before), window))[0]
    for numbers, where in zip(found, places, strict=True):
        for i in range(len(where)):
            near = (np.abs(where - where[i]) < window).all(-1)
            np.testing.assert_array_equal(numbers == numbers[i], near)
    assert len(set(found[0])) == 1 and len(set(found[1])) == 2


def test_shifted_windows_look_at_neighbours_only():
    """What changes when one voxel changes: its own window's voxels, none across the border."""
    block = scrambled(SwinBlock(4, 2, 2, True, {"dtype": "float32", "rngs": nnx.Rngs(0)}))
    x = jnp.asarray(normal(1, 6, 4, 4, 4))
    run = jax.jit(lambda x: block(x))
    changed = np.abs(run(x) - run(x.at[0, 0, 1, 2].add(jnp.arange(4.0)))).max(-1)[0] > 1e-6
    expected = np.zeros((6, 4, 4), bool)
    expected[0:1, 1:3, 1:3] = True  # windows start at odd voxels; the first and last are halves
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize(("order", "twice"), [("fixed", []), ("legacy", [(0, 1, 0), (0, 0, 1)])])
def test_merging_puts_eight_voxels_side_by_side(order, twice):
    x = normal(1, 2, 2, 4, 3)
    layer = Merging(3, order, {"dtype": "float32", "rngs": nnx.Rngs(0)})
    layer.reduction.kernel[...] = jnp.asarray(normal(24, 6))
    places = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
    ]
    if twice:
        places[4:7] = [(1, 0, 1), *twice]
    for z in (0, 1):
        side_by_side = np.concatenate([x[0, i, j, 2 * z + k] for i, j, k in places])
        expected = linear(layer_norm(side_by_side, layer.norm), layer.reduction)
        np.testing.assert_allclose(layer(jnp.asarray(x))[0, 0, 0, z], expected, atol=1e-5)
