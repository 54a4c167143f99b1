"""Dual, deep supervision and the gradient ablations against the original programs, case (a)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax import isnet, losses, lrp
from tests.isnet.cases import SETTINGS, batch_of, error, last, load, seq_cnn, to_ours


@pytest.fixture
def case_a(golden, x64):
    return seq_cnn(golden)


def maps_of(model, case, method):
    graphs = isnet.programs(model, *(rules for _, rules in method.parts))
    params, rest = isnet.variables(model)
    return isnet.heatmaps(graphs, params, rest, batch_of(case)["image"], method, training=False)


@pytest.mark.parametrize("first_layer", ["zb", "plain"])
def test_dual_maps(case_a, first_layer):
    case, model = case_a
    dual = isnet.ISNet(**isnet.VARIANTS["dual"])
    key = "block/z+e"
    if first_layer == "plain":
        rows = (("@output_layer", "zplus", {"own_sum": True}),)
        rows += tuple((f"kind:{k}", "zplus") for k in ("conv", "dense", "max_pool", "avg_pool"))
        start = lrp.AllLogits()
        plus = lrp.create("table", rows=rows)
        dual = isnet.ISNet(start, lrp.create("epsilon"), also=((start, plus),))
        key = "block/z+e_noZb"
    epsilon, plus = maps_of(model, case, dual)
    stored = last(case[key])  # the original's first map is z+
    assert error(plus.relevance[:, 0], stored[:, 0]) < 1e-12
    assert error(epsilon.relevance[:, 0], stored[:, 1]) < 1e-12


DEEP = isnet.ISNet(
    lrp.EachLogit(),
    lrp.create("isnet_flex_zb", detach_bias=True),
    SETTINGS["flex_script"],
    deep=True,
)


def test_deep_supervision_with_tuned_cuts(case_a):
    case, model = case_a
    graphs = isnet.programs(model, DEEP.composite)
    params, rest = isnet.variables(model)
    batch = batch_of(case)
    (maps,) = isnet.heatmaps(graphs, params, rest, batch["image"], DEEP, training=False)
    assert error(maps.hidden["pool"], last(case["flex/logits/layer/2"])) < 1e-12
    assert error(maps.hidden["relu1"], last(case["flex/logits/layer/5"])) < 1e-12

    layers = [maps.relevance, *maps.hidden.values()]
    tuned = [losses.tune_cuts(np.asarray(losses.total_relevance(layer))) for layer in layers]
    np.testing.assert_allclose(tuned, case["flex/logits/lds_loss/C1C2"], rtol=1e-9)
    cuts = jnp.asarray(tuned)[:, None]

    def total(params, decay):
        method = isnet.ISNet(
            DEEP.start, DEEP.composite, DEEP.loss, deep=True, deep_decay=decay, weight=0.7
        )
        terms, _ = isnet.sample_terms(graphs, params, rest, batch, method, cuts, training=False)
        loss = terms["loss"].mean()
        return loss, (loss - 0.3 * terms["cross_entropy"].mean()) / 0.7

    for decay in (1.0, 0.8):
        heat = total(params, decay)[1]
        np.testing.assert_allclose(heat, case[f"flex/logits/lds_loss/dLoss{decay}"], rtol=1e-9)
    grads = jax.jit(jax.grad(lambda p: total(p, 0.8)[0]))(params)
    for name, (module, field) in {
        "0.weight": ("conv0", "kernel"),
        "0.bias": ("conv0", "bias"),
        "8.weight": ("fc", "kernel"),
    }.items():
        stored = to_ours(case[f"flex/logits/lds_grad/{name}"])
        assert error(grads[module][field], stored) < 1e-8, name


@pytest.mark.parametrize(
    ("key", "variant"),
    [("gradinput_logits", "grad_x_input"), ("gradinput_softmax", "softmax_grad_x_input")],
)
def test_gradient_ablations(golden, case_a, key, variant):
    # The original explains the batch MEAN, so its maps shrink with the batch; ours do not.
    case, model = case_a
    stored = load(golden / "isnet" / "baselines_unit.npz")
    method = isnet.ISNet(**isnet.VARIANTS[variant])
    (maps,) = maps_of(model, case, method)
    batch = batch_of(case)
    small = maps.relevance / len(batch["label"])
    loss = losses.HeatmapLoss(1, 3, 0.9, 1, "hybrid")
    heat = loss(small, batch["mask"], (1.0, 25.0))[0].mean()
    plain = isnet.cross_entropy(maps.logits, batch["label"]).mean()
    ours = [plain, heat, 0.3 * plain + 0.7 * heat]
    np.testing.assert_allclose(ours, stored[f"{key}/values"], rtol=1e-9)


def test_stochastic_draws_the_top_class_half_of_the_time():
    logits = jnp.tile(jnp.asarray([[0.0, 3.0, 1.0, 2.0]]), (4000, 1))
    drawn = lrp.Stochastic().draw(logits, jax.random.key(0))
    share = np.bincount(np.asarray(drawn), minlength=4) / 4000
    np.testing.assert_allclose(share, [1 / 6, 1 / 2, 1 / 6, 1 / 6], atol=0.03)
    assert drawn.shape == (4000,)
    one = lrp.Stochastic().draw(jnp.zeros((5, 1)), jax.random.key(0))  # the original never ends
    np.testing.assert_array_equal(one, 0)


def test_stochastic_maps_are_those_of_the_drawn_class():
    rng = jax.random.key(3)
    logits = jax.random.normal(rng, (6, 4))
    drawn = lrp.Stochastic().draw(logits, rng)
    ours = lrp.Stochastic().quantities(logits, None, rng)
    np.testing.assert_array_equal(ours[0], np.asarray(logits)[np.arange(6), np.asarray(drawn)])
    np.testing.assert_array_equal(lrp.Stochastic().quantities(logits)[0], logits.max(-1))
