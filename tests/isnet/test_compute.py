"""Cheaper arithmetic and memory: products in bfloat16, values computed again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp
from isnet_jax.lrp import maps
from isnet_jax.lrp.transformer import Attention
from tests.isnet.test_backbones import narrow
from tests.isnet.test_second_order import _equations

METHOD = isnet.ISNet(composite=lrp.create("isnet_flex_zb"))


def distance(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def batch(side: int) -> dict[str, jax.Array]:
    image = jax.random.uniform(jax.random.key(1), (2, side, side, 3))
    mask = jnp.zeros((2, side, side, 1)).at[:, 4:-4, 4:-4].set(1)
    return {"image": image, "mask": mask, "label": jnp.array([0, 2])}


def loss_and_gradient(model: nnx.Module, method: isnet.ISNet):
    graphs = isnet.programs(model, method.composite)
    params, rest = isnet.variables(model)

    def loss(params, rest, data):
        return isnet.objective(graphs, params, rest, data, method)[0]

    return jax.jit(jax.value_and_grad(loss)), (params, rest, batch(24))


def products(function, *arguments) -> list[str]:
    """The operand dtypes of every convolution of a program."""
    found = _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    name = "conv_general_dilated"
    return [str(e.invars[0].aval.dtype) for e in found if e.primitive.name == name]


# ---------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("name", ["resnet_basic", "densenet", "squeezenet"])
def test_rounded_derivatives_keep_the_map(name: str) -> None:
    # With forward=False the values, so the ReLUs' sides, are those of float32: map and gradients
    # then differ by rounding alone.
    model = narrow(name)
    run, arguments = loss_and_gradient(model, METHOD)
    loss, gradient = run(*arguments)
    x = arguments[2]["image"]
    exact = lrp.explain(model, x, composite="isnet_flex_zb")
    lrp.compute_in(model, "bfloat16", forward=False)
    rounded = lrp.explain(model, x, composite="isnet_flex_zb")
    np.testing.assert_array_equal(rounded.logits, exact.logits)
    assert rounded.relevance.dtype == jnp.float32
    assert 1e-5 < distance(rounded.relevance, exact.relevance) < 2e-2
    run, arguments = loss_and_gradient(model, METHOD)
    rounded_loss, rounded_gradient = run(*arguments)
    assert distance(rounded_loss, loss) < 2e-2
    assert distance(flat(rounded_gradient), flat(gradient)) < 2e-2


def test_a_rounded_forward_keeps_logits_and_totals() -> None:
    # Single pixels may change: a ReLU close to its kink changes side (see docs/lrp.md).
    model = narrow("resnet_basic")
    x = batch(24)["image"]
    exact = lrp.explain(model, x, composite="zplus")
    rounded = lrp.explain(lrp.compute_in(model, "bfloat16"), x, composite="zplus")
    assert rounded.logits.dtype == rounded.relevance.dtype == jnp.float32
    assert 1e-5 < distance(rounded.logits, exact.logits) < 2e-2
    totals = [jnp.abs(m.relevance).sum((1, 2, 3)) for m in (rounded, exact)]
    assert distance(*totals) < 2e-2


@pytest.mark.parametrize("forward", [True, False])
def test_every_product_is_rounded(forward: bool) -> None:
    model = lrp.compute_in(narrow("resnet_bottleneck"), "bfloat16", forward=forward)
    run, arguments = loss_and_gradient(model, METHOD)
    dtypes = products(run, *arguments)
    convolutions = sum(layer.kind == "conv" for _, layer in lrp.rule_layers(model))
    assert dtypes.count("bfloat16") >= 5 * convolutions
    # The forward pass and the image of z^B's box.
    assert dtypes.count("float32") == (0 if forward else convolutions + 1)


@pytest.mark.parametrize("forward", [True, False])
def test_attention_in_bfloat16(forward: bool) -> None:
    layer = Attention(8, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    exact, pull = jax.vjp(layer, x)
    (gradient,) = pull(exact)
    lrp.compute_in(layer, "bfloat16", forward=forward)
    rounded, pull = jax.vjp(layer, x)
    if forward:
        assert 0 < distance(rounded, exact) < 2e-2
    else:
        np.testing.assert_array_equal(rounded, exact)
    assert 0 < distance(pull(exact)[0], gradient) < 2e-2


def test_rounding_is_undone_and_refused() -> None:
    model = narrow("simple_cnn")
    x = batch(8)["image"]
    before = lrp.explain(model, x).relevance
    lrp.compute_in(lrp.compute_in(model, jnp.bfloat16), None)
    np.testing.assert_array_equal(lrp.explain(model, x).relevance, before)
    for wrong in ("bfloat17", "int8"):
        with pytest.raises(ValueError, match=f"compute dtype '{wrong}' must be a floating one"):
            lrp.compute_in(model, wrong)


def test_closed_convolution_rounds_as_the_open_one(x64) -> None:
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(2, 6, 6, 2))), jnp.asarray(rng.normal(size=(3, 3, 2, 3)))
    shared = (((1, 1), (1, 1)), (1, 1), 1)
    wide = maps.ConvMap((1, 1), *shared)
    for forward in (True, False):
        low = maps.ConvMap((1, 1), *shared, maps.Rounding("bfloat16", forward))
        value, pull = jax.vjp(low, x, w)
        s = jnp.cos(value)
        for ours, theirs in zip(pull(s), jax.vjp(wide, x, w)[1](s), strict=True):
            assert ours.dtype == jnp.float64
            assert 0 < distance(ours, theirs) < 1e-2


# ---------------------------------------------------------------- rematerialisation


def test_remat_changes_memory_and_nothing_else() -> None:
    model = narrow("densenet", depths=(3, 3), stem="small")
    method = partial(isnet.ISNet, composite=lrp.create("isnet_flex"))
    run, arguments = loss_and_gradient(model, method())
    again, _ = loss_and_gradient(model, method(remat=True))
    assert len(products(again, *arguments)) == len(products(run, *arguments))
    run, again = (f.lower(*arguments).compile() for f in (run, again))
    (ours, our_gradient), (theirs, gradient) = again(*arguments), run(*arguments)
    assert distance(ours, theirs) < 1e-6
    assert distance(flat(our_gradient), flat(gradient)) < 1e-5
    memory = [f.memory_analysis().temp_size_in_bytes for f in (again, run)]
    assert memory[0] < 0.95 * memory[1]
