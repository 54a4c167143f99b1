"""The compiled programs: no convolution more than the theory says, nothing slow hidden in them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp, models
from isnet_jax.losses import HeatmapLoss

L = 20  # convolutions of a ResNet-18
SIZE, CLASSES, BATCH = 32, 3, 2


@pytest.fixture(scope="module")
def resnet():
    return models.create("resnet18", num_classes=CLASSES, width=8, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.random((BATCH, SIZE, SIZE, 3)), jnp.float32),
        "mask": jnp.asarray(rng.random((BATCH, SIZE, SIZE, 1)) > 0.5, jnp.float32),
        "label": jnp.asarray([0, 2], jnp.int32),
    }


def step(model, batch, method, composite):
    """Lowered gradient step of `isnet.objective`."""
    graphs = isnet.programs(model, composite)
    params, rest = isnet.variables(model)

    def loss(params, rest, batch):
        return isnet.objective(graphs, params, rest, batch, method)

    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, rest, batch)


def convolutions(lowered):
    """(before, after) XLA's optimisation."""
    after = re.findall(r" convolution\(|__onednn\$conv|custom-call.*conv", compiled(lowered))
    return lowered.as_text().count("stablehlo.convolution"), len(after)


def compiled(lowered):
    return lowered.compile().as_text()


FLEX = lrp.create("isnet_flex")


@pytest.mark.parametrize(
    ("method", "composite", "count"),
    [
        (None, FLEX, 3 * L - 1),
        (isnet.ISNet(lrp.Selective(), FLEX), FLEX, 6 * L - 1),
        (isnet.ISNet(lrp.Selective(), lrp.create("epsilon")), lrp.create("epsilon"), 6 * L - 1),
    ],
    ids=["plain", "isnet_flex", "isnet_epsilon"],
)
def test_a_step_has_the_fewest_possible_convolutions(resnet, batch, method, composite, count):
    assert convolutions(step(resnet, batch, method, composite)) == (count, count)


def test_zb_in_the_first_layer_adds_its_own(resnet, batch):
    composite = lrp.create("isnet_flex_zb")
    before, after = convolutions(step(resnet, batch, isnet.ISNet(composite=composite), composite))
    # With low = 0: one box image, one more input-transpose, and their derivatives; the box image's
    # own input derivative is traced but dead.
    assert (before, after) == (6 * L - 1 + 7, 6 * L - 1 + 7)


def test_original_isnet_pays_one_plain_step_a_class(resnet, batch):
    method = isnet.ISNet(lrp.EachLogit(), FLEX)
    before, _ = convolutions(step(resnet, batch, method, FLEX))
    # Forward L, its gradient 2L - 1, and a map a class: pull-back L and its two derivatives.
    assert before == 3 * L - 1 + CLASSES * 3 * L


def test_no_float64_and_no_host_callback(resnet, batch):
    text = compiled(step(resnet, batch, isnet.ISNet(), lrp.create("isnet_flex_zb")))
    assert "f64[" not in text
    assert not re.search(r"callback|infeed|outfeed|host_", text)


def test_second_order_brings_no_new_kind_of_convolution(resnet, batch):
    def kinds(lowered):
        found = re.findall(r"stablehlo\.convolution[^\n]*", lowered.as_text())
        marks = ("lhs_dilate = [2", "rhs_dilate = [2", "stride = [2", "reverse = [true")
        return {tuple(mark in line for mark in marks) for line in found}

    plain = kinds(step(resnet, batch, None, FLEX))
    assert kinds(step(resnet, batch, isnet.ISNet(), lrp.create("isnet_flex_zb"))) == plain
    # Neither order reverses and dilates one kernel, the case without a fast path.
    assert not any(dilated and reverse for _, dilated, _, reverse in plain)


def test_inference_of_an_isnet_is_the_plain_program(resnet, batch):
    def inference(composite):
        graphs = isnet.programs(resnet, composite)
        params, rest = isnet.variables(resnet)
        return jax.jit(lambda p, r, x: isnet.bind(graphs.infer, p, r)(x)[0]).lower(
            params, rest, batch["image"]
        )

    graphdef, state = nnx.split(resnet)
    alone = nnx.merge(graphdef, nnx.to_pure_dict(state))
    alone.eval()
    _, params, rest = nnx.split(alone, nnx.Param, ...)
    plain_def = nnx.split(alone, nnx.Param, ...)[0]
    plain = jax.jit(lambda p, r, x: nnx.merge(plain_def, p, r)(x)).lower(
        nnx.to_pure_dict(params), nnx.to_pure_dict(rest), batch["image"]
    )
    ours = inference(lrp.create("isnet_flex_zb"))
    assert ours.as_text() == plain.as_text()
    assert ours.as_text().count("stablehlo.convolution") == L


def test_the_view_has_the_plain_models_logits(resnet, batch):
    graphs = isnet.programs(resnet, lrp.create("epsilon"))
    params, rest = isnet.variables(resnet)
    both = (graphs.infer, graphs.views[0].infer)
    outputs = [isnet.bind(g, params, rest)(batch["image"])[0] for g in both]
    np.testing.assert_array_equal(*outputs)


def test_loss_settings_do_not_change_the_count(resnet, batch):
    method = isnet.ISNet(composite=FLEX, loss=HeatmapLoss(decay=0.996, right="l2", scale=10))
    before, _ = convolutions(step(resnet, batch, method, FLEX))
    assert before == 6 * L - 1
