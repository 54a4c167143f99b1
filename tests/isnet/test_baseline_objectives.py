"""Every baseline's training gradient against differences, in float64, on a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax.baselines import (
    ag_sononet,
    erm,
    gain,
    gals,
    group_dro,
    ham,
    ham_network,
    irm,
    multitask_unet,
    pgi,
    pipeline,
    rrr,
    unet2d,
)
from isnet_jax.isnet import programs, variables
from tests.isnet.baseline_cases import cnn, directional, fast_jit, in_float64, inner, random_like

B = 4


def plain():
    return cnn(1)


def sononet():
    return ag_sononet.AGSononet(
        num_classes=3,
        in_channels=2,
        widths=(2, 2, 2, 3, 3),
        feature_scale=1,
        convs=(1, 1, 1, 1, 1),
        rngs=nnx.Rngs(1),
    )


def ham_net():
    return ham_network.HAMNet(
        num_classes=2,
        in_channels=2,
        depths=(1,),  # the dilated stages have no formula of their own
        block="basic",
        width=4,
        stem="small",
        head=3,
        rngs=nnx.Rngs(1),
    )


def multitask():
    return multitask_unet.MultiTaskUNet(
        num_classes=3, in_channels=2, widths=(2, 3), pooled=2, hidden=4, rngs=nnx.Rngs(1)
    )


def segmenter():
    return unet2d.UNet2D(in_channels=2, widths=(2, 3), rngs=nnx.Rngs(1))


CASES = {
    "erm": (plain, erm.ERM(), erm.objective),
    "rrr": (plain, rrr.RRR(3.0), rrr.objective),
    "gals": (plain, gals.GALS(10.0), gals.objective),
    "irm": (plain, irm.IRM(2.0), irm.objective),
    "pgi": (plain, pgi.PGI(), pgi.objective),
    "group_dro": (plain, group_dro.GroupDRO(), group_dro.objective),
    "ham": (ham_net, ham.HAM(bound=0.1, union=0.1), ham.objective),
    "ham_heads": (ham_net, ham.HAM(bound=0, union=0, supervision=0), ham.objective),
    "ag_sononet": (sononet, ag_sononet.ERM(), ag_sononet.objective),
    "multitask_unet": (multitask, multitask_unet.MultiTask(), multitask_unet.objective),
    "segmenter": (segmenter, pipeline.Pipeline(), pipeline.segmentation_objective),
}


def batch_of(side):
    x = jax.random.normal(jax.random.key(5), (B, side, side, 2), jnp.float64)
    inside = (np.arange(side) < side // 2).astype(float)
    mask = np.broadcast_to(np.multiply.outer(inside, inside)[None, ..., None], (B, side, side, 1))
    return {
        "image": x,
        "label": jnp.asarray([0, 1, 2, 1]),
        "mask": jnp.asarray(mask),
        "attention": jnp.asarray(mask * 0.7).at[2].set(0),
        "group": jnp.asarray([0, 1, 0, 0]),
    }


@pytest.mark.parametrize("name", CASES)
def test_gradient_against_differences(x64, name):
    make, method, objective = CASES[name]
    model = make() if make is plain else in_float64(make)
    graphs = programs(model)
    params, rest = variables(model)
    batch = batch_of(16 if name == "ag_sononet" else 6)
    training = True
    if name == "group_dro":
        # In training the weights follow the losses, and carry no derivative.
        rest, training = {"model": rest, "weights": jnp.asarray([0.3, 0.7])}, False

    @fast_jit
    def both(params):
        return jax.value_and_grad(
            lambda p: objective(graphs, p, rest, batch, method, training=training), has_aux=True
        )(params)

    (loss, (values, updated)), grads = both(params)
    way = random_like(params)
    # PGI's penalty and HAM's maps do not move the heads, although the heads move them.
    for head in {"pgi": ("classifier",), "ham": ("classifier", "anomaly")}.get(name, ()):
        way[head] = jax.tree.map(jnp.zeros_like, way[head])
    told = directional(lambda p: float(both(p)[0][0]), params, way, 2e-6 if name == "ham" else 2e-5)
    assert inner(grads, way) == pytest.approx(told, rel=1e-6, abs=1e-9)
    assert abs(told) > 1e-4
    assert loss == values["loss"] and all(np.ndim(v) == 0 for v in values.values())
    assert jax.tree.structure(updated) == jax.tree.structure(rest)
    if training:
        moved = zip(*map(jax.tree.leaves, (rest, updated)), strict=True)
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in moved)


def test_gain_with_its_channel_weights_held_constant(x64):
    """Value and gradient from a second writing of the loss, its weights in closed form."""
    model = cnn(2, norm=False)
    graphs, (params, rest), batch = programs(model), variables(model), batch_of(6)
    method = gain.GAIN(threshold=0.02, steepness=30.0)
    graphdef = graphs.infer
    labels = np.asarray(batch["label"])
    # Behind the global average, d logit_k / d F_c in a cell is kernel[c, k] / cells.
    constant = np.asarray(params["classifier"]["kernel"])[:, labels].T / 9

    def features(params, x):
        net = nnx.merge(graphdef, params, rest)
        x = net.pools[0](net.relus[0](net.blocks[0](x)))
        return net.relus[1](net.blocks[1](x))

    def logits_of(params, f):
        head = params["classifier"]
        return f.mean((1, 2)) @ head["kernel"] + head["bias"][None]

    def upsampled(map3):  # 3x3 to 6x6, half-pixel centres, edges clamped
        out = []
        for i in range(6):
            at = min(max((i + 0.5) / 2 - 0.5, 0), 2)
            low = int(at)
            high, t = min(low + 1, 2), at - low
            out.append((1 - t) * map3[:, low] + t * map3[:, high])
        return jnp.stack(out, 1)

    def loss(params):
        x, f = batch["image"], features(params, batch["image"])
        cam = jnp.maximum(jnp.einsum("bhwc,bc->bhw", f, constant), 0)
        cam = upsampled(jnp.swapaxes(upsampled(cam), 1, 2)).swapaxes(1, 2)
        kept = x * (1 - 1 / (1 + jnp.exp(-30 * (cam - 0.02))))[..., None]
        p = [jax.nn.softmax(logits_of(params, v)) for v in (f, features(params, kept))]
        rows = np.arange(B)
        plain, mining = -jnp.log(p[0][rows, labels]).mean(), p[1][rows, labels].mean()
        fit = ((cam - batch["mask"][..., 0]) ** 2).mean()
        return plain + mining + 10 * fit, (plain, mining, fit, cam)

    loss_of = fast_jit(loss)
    expected, (plain, mining, fit, cam) = loss_of(params)

    @fast_jit
    def ours(params):
        return jax.value_and_grad(
            lambda p: gain.objective(graphs, p, rest, batch, method, training=False), has_aux=True
        )(params)

    (value, (values, _)), grads = ours(params)
    assert cam.max() > 0.02  # the soft mask is neither all 0 nor all 1
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    told = [values[k] for k in ("cross_entropy", "mining", "supervision")]
    np.testing.assert_allclose(told, [plain, mining, fit], rtol=1e-12)
    way = random_like(params)
    difference = directional(lambda p: float(loss_of(p)[0]), params, way)
    assert inner(grads, way) == pytest.approx(difference, rel=1e-6)


def test_the_penalty_of_pgi_leaves_the_head_alone(x64):
    model = cnn(1)
    graphs, (params, rest), batch = programs(model), variables(model), batch_of(6)

    @fast_jit
    def slope(weight):
        return jax.grad(
            lambda p: pgi.objective(graphs, p, rest, batch, pgi.PGI(), weight=weight)[0]
        )(params)

    with_it, without = slope(50.0), slope(0.0)
    for a, b in zip(
        *map(jax.tree.leaves, (with_it["classifier"], without["classifier"])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (with_it, without)), strict=True)
    )


def test_the_maps_of_ham_leave_the_heads_alone(x64):
    model = in_float64(ham_net)
    graphs, (params, rest), batch = programs(model), variables(model), batch_of(6)

    def slope(method):
        return fast_jit(jax.grad(lambda p: ham.objective(graphs, p, rest, batch, method)[0]))(
            params
        )

    with_maps, without = (slope(CASES[name][1]) for name in ("ham", "ham_heads"))
    for head in ("classifier", "anomaly"):
        np.testing.assert_allclose(with_maps[head]["kernel"], without[head]["kernel"], rtol=1e-12)
    assert (with_maps["head"]["kernel"] != without["head"]["kernel"]).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rrr.RRR(-1), "RRR weight=-1"),
        (lambda: rrr.RRR(reduction="max"), "legal values: mean, sum"),
        (lambda: gals.GALS(float("nan")), "GALS weight=nan"),
        (lambda: gain.GAIN(mining=-1), "GAIN mining=-1"),
        (lambda: irm.IRM(dummy="matrix"), "IRM dummy"),
        (lambda: group_dro.GroupDRO(0), "groups=0"),
        (lambda: group_dro.GroupDRO(2, adjustment=1.0, group_sizes=(3,)), "needs 2 group_sizes"),
        (lambda: ham.HAM(union=-2), "HAM union=-2"),
        (lambda: multitask_unet.MultiTask(1.5), "weight=1.5"),
        (lambda: pipeline.Pipeline(threshold=1.0), "threshold=1.0"),
        (lambda: pipeline.Pipeline(fill="black"), "pipeline fill"),
        (
            lambda: rrr.objective(None, {}, {}, {"image": 0}, rrr.RRR()),
            r"RRR needs batch entries mask; got \['image'\]",
        ),
        (lambda: unet2d.UNet2D(widths=(2,), rngs=nnx.Rngs(0)), "two or more"),
        (lambda: ham_network.FovealAttention(3, rngs=nnx.Rngs(0)), "features=3"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
