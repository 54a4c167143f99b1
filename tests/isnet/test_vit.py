"""The vision transformer: torchvision's logits and gradients, its keys, its maps."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import lrp, models
from isnet_jax.models import convert


@pytest.fixture(scope="module")
def case(golden):
    return dict(np.load(golden / "arch" / "tv_vit_small.npz"))


@pytest.fixture(scope="module")
def model(case):
    arrays = {k.removeprefix("sd/"): v for k, v in case.items() if k.startswith("sd/")}
    return models.from_torch("vit", arrays, depth=2, heads=4)


def image(case):
    return jnp.moveaxis(jnp.asarray(case["x"]), 1, -1)


def test_every_key_of_vit_b_16_has_a_place(golden):
    path = golden / "arch" / "keys" / "tv_vit_b_16.json.gz"
    keys = json.loads(gzip.decompress(path.read_bytes()))
    shapes = {k: jax.ShapeDtypeStruct(tuple(s), jnp.float32) for k, (s, _) in keys.items()}
    found = convert.fit("vit_b_16", shapes)
    assert len(found.places) == len(keys) == 152
    del shapes["class_token"]
    with pytest.raises(ValueError, match="missing keys: class_token"):
        convert.fit("vit_b_16", shapes)


@pytest.mark.parametrize("preset", ["attn_lrp", "cp_lrp", "epsilon"])
def test_maps_are_finite_and_hidden_ones_too(case, model, preset):
    found = lrp.explain(model, image(case), composite=preset, hidden=model.supervised)
    assert found.relevance.shape == image(case).shape
    assert set(found.hidden) == {"blocks/0/add2", "blocks/1/add2"}
    for value in (found.relevance, *found.hidden.values()):
        assert np.isfinite(value).all() and np.abs(value).max() > 0


def test_gradient_x_input_is_the_plain_gradient(case, model):
    x = image(case)
    found = lrp.explain(model, x, target=1, composite="gradient_x_input")
    gradient = jax.grad(lambda v: model(v)[:, 1].sum())(x)
    np.testing.assert_allclose(found.relevance, gradient * x, rtol=1e-4, atol=1e-6)


def test_mistakes_are_named():
    small = {"num_classes": 2, "depth": 1, "heads": 2, "width": 8, "hidden": 8, "patch": 4}
    net = models.create("vit", **small, tokens=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(8, 12\) give 6 patches, expected 4 \(as \(8, 8\)"):
        net(jnp.zeros((1, 8, 12, 3)))
    with pytest.raises(ValueError, match="input_relu"):
        lrp.create("isnet_flex_zb").matches(net)
