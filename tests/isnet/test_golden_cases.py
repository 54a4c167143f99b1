"""Whole networks against arrays made by running the original ISNet and zennit programs.

Cases: (a) a sequential CNN in float64, (a_trainbn) the same with batch statistics, (b) ResNet-18.
Where the original is known to be wrong (spec: train-mode BatchNorm, overlapping unpooling, biases
hidden from the derivative), the difference is asserted instead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp, models
from tests.isnet.cases import (
    NAMES,
    SETTINGS,
    batch_of,
    error,
    last,
    load,
    seq_cnn,
    to_ours,
)


@pytest.fixture
def case_a(golden, x64):
    return seq_cnn(golden)


@pytest.fixture
def case_b(golden, x64):
    case = load(golden / "isnet" / "case_b_resnet18.npz")
    arrays = {k[2:]: v.astype(np.float64) for k, v in case.items() if k.startswith("w/")}
    graphdef, state = nnx.split(models.from_torch("resnet18", arrays))
    wide = jax.tree.map(lambda v: v.astype(jnp.float64), nnx.to_pure_dict(state))
    return case, nnx.merge(graphdef, wide)


EACH, LEAST = lrp.EachLogit(), lrp.Selective(0.01)
MAPS = [
    ("gradxinput", EACH, lrp.create("gradient_x_input"), None),
    ("flex/logits", EACH, lrp.create("isnet_flex_zb"), None),
    ("flex/logits_noZb", EACH, lrp.create("isnet_flex"), None),
    ("flex/logits_e0_noZb", EACH, lrp.create("isnet_flex", epsilon=0.0), None),
    ("flex/selective_argmin", LEAST, lrp.create("isnet_flex_zb"), None),
    ("flex/selective_argmin_eps1e-7", lrp.Selective(1e-7), lrp.create("isnet_flex_zb"), None),
    ("flex/selective_class0", LEAST, lrp.create("isnet_flex_zb"), 0),
    ("flex/selective_class3", LEAST, lrp.create("isnet_flex_zb"), 3),
    ("flex/label_logit", lrp.Logit(), lrp.create("isnet_flex_zb"), "label"),
    ("block/e_multiple", EACH, lrp.create("isnet_epsilon_zb"), None),
    ("block/e_multiple_noZb", EACH, lrp.create("epsilon"), None),
    ("block/e1e-12_multiple_noZb", EACH, lrp.create("epsilon", epsilon=1e-12), None),
]


def map_of(model, case, start, composite, classes, training=False):
    graphs = isnet.programs(model, composite)
    params, rest = isnet.variables(model)
    batch = batch_of(case)
    if classes is not None:
        classes = batch["label"] if classes == "label" else jnp.full(len(batch["label"]), classes)
    view = graphs.views[0]
    f = isnet.bind(view.train if training else view.infer, params, rest)
    return lrp.relevance(f, batch["image"], start, terminal=view.terminal, classes=classes)


@pytest.mark.parametrize(("key", "start", "composite", "classes"), MAPS, ids=[m[0] for m in MAPS])
def test_case_a_maps(case_a, key, start, composite, classes):
    case, model = case_a
    maps = map_of(model, case, start, composite, classes)
    np.testing.assert_allclose(maps.logits, case["logits"], rtol=1e-12)
    assert error(maps.relevance, last(case[key])) < 1e-12


ZENNIT = [
    ("matched/eps", lrp.create("epsilon")),
    ("matched/zb_isnet", lrp.create("isnet_epsilon_zb")),
    (
        "matched/zbox_zennit",
        lrp.Composite(
            ((lrp.INPUT, lrp.ZB(0.0, 1.0, 0.01, bias="cancel")), *lrp.create("epsilon").entries)
        ),
    ),
]


@pytest.mark.parametrize(("key", "composite"), ZENNIT, ids=[z[0] for z in ZENNIT])
def test_case_a_maps_equal_zennit(golden, case_a, key, composite):
    case, model = case_a
    maps = map_of(model, case, EACH, composite, None)
    assert error(maps.relevance, last(load(golden / "isnet" / "zennit_a_seqcnn.npz")[key])) < 1e-12


@pytest.mark.parametrize(
    ("key", "start", "composite", "classes"),
    [m for m in MAPS if m[0] in ("flex/logits", "flex/selective_argmin", "block/e_multiple")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_case_b_maps(case_b, key, start, composite, classes):
    case, model = case_b
    maps = map_of(model, case, start, composite, classes)
    np.testing.assert_allclose(maps.logits, case["logits"], rtol=1e-10)
    assert error(maps.relevance, last(case[key])) < 1e-7  # stored as float32


def test_overlapping_pool_adds_where_the_original_overwrites(case_b):
    case, model = case_b
    maps = map_of(model, case, EACH, lrp.create("isnet_epsilon_zb"), None)
    assert error(maps.relevance, last(case["block_asis/e_multiple"])) > 0.5


# ---------------------------------------------------------------- losses and gradients


def loss_of(graphs, params, rest, batch, method, training, frozen=()):
    """Total loss and terms; ``frozen`` names parameters hidden from the heatmap's derivative."""
    terms, _ = isnet.sample_terms(graphs, params, rest, batch, method, training=training)
    if not frozen:
        return terms["loss"].mean(), terms
    hidden = jax.tree_util.tree_map_with_path(
        lambda path, v: jax.lax.stop_gradient(v) if path[0].key in frozen else v, params
    )
    heat, _ = isnet.sample_terms(graphs, hidden, rest, batch, method, training=training)
    plain = (1 - method.weight) * (terms["cross_entropy"] - heat["cross_entropy"])
    return (plain + heat["loss"]).mean(), terms


def gradients(model, case, method, training, frozen=()):
    graphs = isnet.programs(model, method.composite)
    params, rest = isnet.variables(model)
    return jax.jit(
        jax.value_and_grad(
            lambda p: loss_of(graphs, p, rest, batch_of(case), method, training, frozen),
            has_aux=True,
        )
    )(params)


def check_loss(case, key, setting, value, terms):
    stored = case[f"{key}/loss/{setting}"]
    ours = [terms[k].mean() for k in ("cross_entropy", "background", "foreground")]
    np.testing.assert_allclose([*ours, value], [*stored[:3], stored[4]], rtol=1e-9, atol=1e-12)


def check_gradients(case, key, setting, grads, *, zero=()):
    """Stored gradients, and the stored norm of every other parameter's."""
    for name, path in NAMES.items():
        stored = case.get(f"{key}/grad/{setting}/{name}")
        ours = functools.reduce(dict.__getitem__, path, grads)
        if stored is not None:
            assert error(ours, to_ours(stored)) < 1e-9, name
        norms = case.get(f"{key}/gradnorms/{setting}")
        if norms is not None and name not in zero:
            stored_norm = norms[list(NAMES).index(name)]
            np.testing.assert_allclose(np.linalg.norm(ours), stored_norm, rtol=1e-8, err_msg=name)


FLEX = lrp.create("isnet_flex_zb", detach_bias=True)


@pytest.mark.parametrize("setting", ["flex_script", "flex_class"])
@pytest.mark.parametrize(
    ("key", "start"), [("flex/logits", EACH), ("flex/selective_argmin", LEAST)]
)
def test_case_a_flex_losses_and_gradients(case_a, key, start, setting):
    case, model = case_a
    method = isnet.ISNet(start, FLEX, SETTINGS[setting])
    (value, terms), grads = gradients(model, case, method, training=False)
    check_loss(case, key, setting, value, terms)
    check_gradients(case, key, setting, grads)


def test_case_a_block_losses_and_gradients(case_a):
    # The Block also hides the classifier's bias in the start signal; so does `frozen` here.
    case, model = case_a
    composite = lrp.create("isnet_epsilon_zb", detach_bias=True)
    method = isnet.ISNet(EACH, composite, SETTINGS["block_script"])
    graphs = isnet.programs(model, composite)
    params, rest = isnet.variables(model)

    def loss(params):
        hidden = {
            **params,
            "fc": {**params["fc"], "bias": jax.lax.stop_gradient(params["fc"]["bias"])},
        }
        batch = batch_of(case)
        terms, _ = isnet.sample_terms(graphs, hidden, rest, batch, method, training=False)
        plain, _ = isnet.sample_terms(graphs, params, rest, batch, None, training=False)
        total = terms["loss"] + (1 - method.weight) * (plain["loss"] - terms["cross_entropy"])
        return total.mean(), terms

    (value, terms), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    check_loss(case, "block/e_multiple", "block_script", value, terms)
    check_gradients(case, "block/e_multiple", "block_script", grads)


def path_of(name):
    """Our parameter for a torchvision name of a ResNet-18, as the converter maps it."""
    model = models.create("resnet18", num_classes=4, rngs=nnx.Rngs(0))
    layer, _, field = name.rpartition(".")
    path = model.torch_names()[layer]
    norm = path.endswith("norm")
    field = {"weight": "scale" if norm else "kernel", "bias": "bias"}[field]
    return [int(part) if part.isdigit() else part for part in (*path.split("/"), field)]


@pytest.mark.parametrize(
    ("key", "start", "composite", "setting"),
    [
        ("flex/selective_argmin", LEAST, FLEX, "flex_script"),
        ("flex/selective_argmin", LEAST, FLEX, "flex_class"),
        ("flex/logits", EACH, FLEX, "flex_script"),
        pytest.param("flex/logits", EACH, FLEX, "flex_class", marks=pytest.mark.slow),
    ],
)
def test_case_b_losses_and_gradients(case_b, key, start, composite, setting):
    case, model = case_b
    method = isnet.ISNet(start, composite, SETTINGS[setting])
    (value, terms), grads = gradients(model, case, method, training=False)
    check_loss(case, key, setting, value, terms)
    prefix = f"{key}/grad/{setting}/"
    stored = {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}
    assert len(stored) >= 4
    for name, array in stored.items():
        ours = functools.reduce(lambda tree, step: tree[step], path_of(name), grads)
        assert error(ours, to_ours(array)) < 1e-7, name
    for name, norm in zip(case["param_names"], case[f"{key}/gradnorms/{setting}"], strict=True):
        ours = functools.reduce(lambda tree, step: tree[step], path_of(name), grads)
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=1e-7, err_msg=name)


# ---------------------------------------------------------------- BatchNorm in training mode


@pytest.fixture
def train_bn(golden):
    return load(golden / "isnet" / "case_a_trainbn.npz")


@pytest.mark.parametrize(
    ("key", "start"), [("flex/logits", EACH), ("flex/selective_argmin", LEAST)]
)
def test_statistics_through_reproduces_the_original_flex(case_a, train_bn, key, start):
    case, model = case_a
    composite = lrp.create("isnet_flex_zb", detach_bias=True, statistics="through")
    method = isnet.ISNet(start, composite, SETTINGS["flex_script"])
    assert (
        error(map_of(model, case, start, composite, None, True).relevance, last(train_bn[key]))
        < 1e-12
    )
    (value, terms), grads = gradients(model, case, method, training=True)
    check_loss(train_bn, key, "flex_script", value, terms)
    # A bias before a BatchNorm has gradient zero; the stored norm is rounding.
    check_gradients(train_bn, key, "flex_script", grads, zero=("3.bias",))


@pytest.mark.parametrize(
    ("key", "preset"),
    [
        ("reference/frozen_stats_logits", "isnet_flex_zb"),
        ("reference/frozen_stats_block", "isnet_epsilon_zb"),
    ],
)
def test_detached_statistics_are_lrp_and_the_original_is_not(case_a, train_bn, key, preset):
    case, model = case_a
    maps = map_of(model, case, EACH, lrp.create(preset), None, training=True)
    assert error(maps.relevance, last(train_bn[key])) < 1e-12
    if preset == "isnet_flex_zb":
        assert error(maps.relevance, last(train_bn["flex/logits"])) > 0.1
    else:  # the original Block takes the unbiased variance in its maps
        gap = error(maps.relevance, last(train_bn["block/e_multiple"]))
        assert 1e-5 < gap < 1e-3
