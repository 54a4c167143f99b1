"""Relevance that arrives plus what the layers say they absorbed is what was explained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import lrp, models
from isnet_jax.lrp.layers import Add, Conv, Dense, ReLU
from tests.isnet.test_backbones import NARROW, narrow

VIT = {"depth": 2, "heads": 2, "width": 8, "hidden": 12, "patch": 8, "tokens": 17}
CASES = [(name, "isnet_epsilon_zb") for name in NARROW] + [("vit", "attn_lrp")]


def _biased(model: nnx.Module) -> nnx.Module:
    """The model with something added to every vector: fresh biases are zero and absorb nothing."""
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(model)

    def move(leaf):
        if leaf.ndim != 1 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(0.1 + 0.1 * rng.random(leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(move, nnx.to_pure_dict(state)))


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_every_backbone_accounts_for_its_relevance(name: str, composite: str) -> None:
    if name == "vit":
        model = models.create("vit", num_classes=3, **VIT, rngs=nnx.Rngs(0))
    else:
        model = narrow(name)
    model = _biased(model)
    x = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    found = lrp.explain(model, x, composite=composite, absorbed=True)
    assert list(found.absorbed) == [path for path, _ in lrp.rule_layers(model)]
    start = found.logits.max(-1)
    arrived = found.relevance.sum((1, 2, 3))
    lost = sum(found.absorbed.values())
    assert (jnp.abs(lost) > 1e-3 * jnp.abs(start)).all()
    np.testing.assert_allclose(arrived + lost, start, rtol=1e-4)
    np.testing.assert_allclose(found.conservation_gap, start - arrived, atol=1e-5)


class Net(nnx.Module):
    """Convolution, ReLU, residual sum, mean, classifier."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = Conv(2, 2, (3, 3), padding=1, rngs=rngs)
        self.relu, self.add = ReLU(), Add()
        self.classifier = Dense(2, 3, rngs=rngs)

    def __call__(self, x):
        return self.classifier(self.add(self.relu(self.conv(x)), x).mean((1, 2)))


def test_a_layer_absorbs_its_bias_and_its_stabiliser(x64) -> None:
    model = _biased(Net())
    rng = np.random.default_rng(2)
    model.classifier.kernel.set_value(jnp.asarray(rng.normal(size=(2, 3))))
    model.conv.kernel.set_value(jnp.asarray(rng.normal(size=(3, 3, 2, 2))))
    for variable in (model.conv.bias, model.classifier.bias):
        variable.set_value(variable[...].astype(jnp.float64))
    x = rng.normal(size=(2, 5, 5, 2))
    epsilon = 0.1
    found = lrp.explain(
        model, x, target="each", composite=lrp.create("epsilon", epsilon=epsilon), absorbed=True
    )

    def stabilised(z):
        return z + epsilon * np.where(z >= 0, 1, -1)

    # By the rule as it is written, from the logits backwards.
    w, b = (np.asarray(v[...]) for v in (model.classifier.kernel, model.classifier.bias))
    z = np.asarray(model.conv(jnp.asarray(x)))
    a = np.maximum(z, 0) + x
    features = a.mean((1, 2))
    logits = features @ w + b
    share = (features[:, :, None] * w / stabilised(logits)[:, None]) * logits[:, None]  # (b, j, k)
    np.testing.assert_allclose(found.absorbed["classifier"], logits - share.sum(1), atol=1e-12)
    r = share[:, None, None] * (a / a.sum((1, 2), keepdims=True))[..., None]  # (b, h, w, j, k)
    kept = r * (a / stabilised(a))[..., None]
    np.testing.assert_allclose(found.absorbed["add"], (r - kept).sum((1, 2, 3)), atol=1e-12)
    r = r / stabilised(a)[..., None] * np.maximum(z, 0)[..., None]
    without_bias = z - np.asarray(model.conv.bias[...])
    r_in = r / np.where(z == 0, 1, stabilised(z))[..., None] * without_bias[..., None]
    np.testing.assert_allclose(found.absorbed["conv"], (r - r_in).sum((1, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(found.absorbed["relu"], 0, atol=1e-12)
    whole = found.relevance.sum((2, 3, 4)) + sum(found.absorbed.values())
    np.testing.assert_allclose(whole, logits, atol=1e-12)
