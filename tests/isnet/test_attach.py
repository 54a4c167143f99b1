"""Models of standard flax.nnx layers get rules; hidden layers give their maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp, models


class Foreign(nnx.Module):
    """Written by somebody else: functions for ReLU and pooling, "SAME" padding, a stride."""

    input_layer = "first"

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 8, (3, 3), padding="VALID", rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.head(nnx.relu(self.second(x)).mean((1, 2)))


@pytest.fixture(scope="module")
def model():
    made = Foreign()
    made.eval()
    return made


@pytest.fixture(scope="module")
def x():
    return jax.random.uniform(jax.random.key(0), (2, 11, 12, 3))


def test_values_and_gradients_stay(model, x):
    composite = lrp.create("gradient_x_input")
    view = lrp.attach(model, composite)
    np.testing.assert_array_equal(view(x), model(x))
    found = lrp.explain(view, x, target=1, composite=composite)
    gradient = jax.grad(lambda v: model(v)[:, 1].sum())(x)
    np.testing.assert_allclose(found.relevance, gradient * x, rtol=1e-5, atol=1e-7)
    assert type(model.first) is nnx.Conv and not hasattr(model.first, "rule")


def test_epsilon_equals_the_same_net_of_our_layers(model, x):
    from isnet_jax.lrp.layers import BatchNorm, Conv, Dense

    class Ours(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(1)
            self.first = Conv(3, 4, (3, 3), strides=2, padding=1, rngs=rngs)
            self.norm = BatchNorm(4, rngs=rngs)
            self.second = Conv(4, 8, (3, 3), rngs=rngs)
            self.head = Dense(8, 3, rngs=rngs)

        __call__ = Foreign.__call__

    x = x[:, :, :11]  # odd sizes: "SAME" is one pixel on both sides
    ours = Ours()
    nnx.update(ours, nnx.state(model))
    ours.eval()
    composite = lrp.create("epsilon")
    a = lrp.explain(lrp.attach(model, composite), x, target="each", composite=composite)
    b = lrp.explain(ours, x, target="each", composite=composite)
    np.testing.assert_allclose(a.relevance, b.relevance, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_treated_is_named():
    class Odd(nnx.Module):
        def __init__(self):
            self.table = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"no LRP layer for table \(Embed\); treated are nnx.Conv"):
        lrp.attach(Odd(), lrp.create("epsilon"))

    class Round(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(1, 1, (3,), padding="CIRCULAR", rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match="convolution conv: padding 'CIRCULAR'"):
        lrp.attach(Round(), lrp.create("epsilon"))


def test_a_foreign_layer_is_refused_wherever_it_stands(model, x):
    for refused in (
        lambda: lrp.explain(model, x, composite="epsilon"),
        lambda: lrp.create("epsilon_plus").report(model),
        lambda: isnet.programs(model, lrp.create("isnet_flex_zb")),
    ):
        with pytest.raises(ValueError, match=r"first \(Conv\).*cannot carry a rule.*attach"):
            refused()
    # The plain derivative needs no rules.
    assert lrp.explain(model, x, composite="gradient_x_input").relevance.shape == x.shape


def test_flex_needs_relus_that_are_layers(model):
    with pytest.raises(ValueError, match=r"no layer of kind 'relu'; isnet_jax.lrp.flex"):
        lrp.attach(model, "isnet_flex")


NORMS = {
    "group": (
        lambda: nnx.GroupNorm(8, num_groups=4, reduction_axes=(-1,), rngs=nnx.Rngs(0)),
        r"reduction_axes \(-1,\)",
    ),
    "layer": (
        lambda: nnx.LayerNorm(8, reduction_axes=(1, 2, 3), rngs=nnx.Rngs(0)),
        r"reduction_axes \(1, 2, 3\)",
    ),
    "axis": (lambda: nnx.BatchNorm(8, axis=1, rngs=nnx.Rngs(0)), "axis 1"),
    "dtype": (lambda: nnx.BatchNorm(8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), "dtype bfloat16"),
    "mapped": (lambda: nnx.BatchNorm(8, axis_name="devices", rngs=nnx.Rngs(0)), "axis_name"),
}


class Normed(nnx.Module):
    def __init__(self, norm):
        self.norm, self.head = norm, nnx.Linear(8, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.norm(x).mean((1, 2)))


@pytest.mark.parametrize("name", NORMS)
def test_options_of_norms_that_ours_have_not(name):
    build, told = NORMS[name]
    with pytest.raises(ValueError, match=f"norm norm: .*{told} has no rule"):
        lrp.attach(Normed(build()), "epsilon")


@pytest.mark.parametrize(
    "build",
    [
        lambda: nnx.InstanceNorm(8, rngs=nnx.Rngs(0)),
        lambda: nnx.GroupNorm(8, num_groups=4, rngs=nnx.Rngs(0)),
        lambda: nnx.LayerNorm(8, rngs=nnx.Rngs(0)),
    ],
)
def test_norms_keep_their_function(build):
    net = Normed(build())
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
    np.testing.assert_allclose(lrp.attach(net, "attn_lrp")(x), net(x), rtol=1e-5, atol=1e-6)


def test_batch_norm_may_be_told_in_the_call(x):
    class Told(Foreign):
        def __call__(self, x, train=False):
            x = nnx.relu(self.norm(self.first(x), use_running_average=not train))
            return self.head(x.mean((1, 2)))

        def __init__(self):
            super().__init__()
            del self.second
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    net = Told()
    view = lrp.attach(net, "gradient_x_input")
    for train in (False, True):
        np.testing.assert_allclose(view(x, train), net(x, train), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(view.norm.mean[...], net.norm.mean[...], rtol=1e-5, atol=1e-7)


def test_hidden_relevance_is_activation_times_gradient():
    net = models.create("simple_cnn", num_classes=3, widths=(4, 4), pooled=1, rngs=nnx.Rngs(0))
    net.eval()
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    found = lrp.explain(
        net, x, target=2, composite="gradient_x_input", hidden=("relus/0", "average")
    )

    def tail(hidden):
        pooled = net.pools[0](hidden)
        return net.classifier(net.average(net.relus[1](net.blocks[1](pooled))))

    hidden = net.relus[0](net.blocks[0](x))
    expected = hidden * jax.grad(lambda h: tail(h)[:, 2].sum())(hidden)
    np.testing.assert_allclose(found.hidden["relus/0"], expected, rtol=1e-5, atol=1e-7)
    # With LRP-0 a layer's relevance sums to the next one's, up to the biases between them.
    last = found.hidden["average"].sum(1)
    kernel, bias = net.classifier.kernel[...], net.classifier.bias[...]
    np.testing.assert_allclose(last, found.logits[:, 2] - bias[2], rtol=1e-4, atol=1e-6)
    assert kernel.shape == (4, 3) and jnp.isfinite(last).all()
    for path in ("relus/9", "relus", "input_layer", "blocks/0/norm", "classifier/kernel"):
        with pytest.raises(ValueError, match=f"no layer at path '{path}'"):
            lrp.explain(net, x, hidden=(path,))
    with pytest.raises(ValueError, match="got the string 'relus/0'"):
        lrp.explain(net, x, hidden="relus/0")


def test_inputs_outside_the_box_have_no_map():
    net = models.create("simple_cnn", num_classes=3, widths=(2, 2), pooled=1, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"x lies in \[-3, 1\], outside the box \[0.0, 1.0\].*blocks/0"
    ):
        lrp.explain(net, jnp.ones((1, 8, 8, 1)).at[0, 0, 0, 0].set(-3.0), composite="isnet_flex_zb")


def test_layers_take_no_option_that_they_would_ignore():
    from isnet_jax.lrp.layers import Conv

    with pytest.raises(TypeError, match="mask"):
        Conv(1, 1, (3, 3), mask=jnp.zeros((3, 3, 1, 1)), rngs=nnx.Rngs(0))
