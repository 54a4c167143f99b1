"""HAM's map losses, the U-Nets and the pipeline: slow second writings, published sizes, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax.baselines import erm, ham, ham_network, multitask_unet, pipeline, unet2d
from isnet_jax.isnet import programs, variables
from tests.isnet.baseline_cases import cnn, fast_jit, in_float64


def parameters(make):
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


def test_published_sizes():
    # The originals have 31.03 M (two classes, one channel) and 253.36 M (three classes).
    count = parameters(lambda: unet2d.UNet2D(in_channels=1, order="relu", rngs=nnx.Rngs(0)))
    assert count == 31_030_658
    many = parameters(
        lambda: multitask_unet.MultiTaskUNet(num_classes=3, mask_classes=1, rngs=nnx.Rngs(0))
    )
    assert round(many / 1e6, 2) == 253.36


@pytest.mark.parametrize("order", ["norm_relu", "relu_norm"])
def test_unet_takes_any_size_and_its_output_is_local_in_the_padding(x64, order):
    net = in_float64(
        lambda: unet2d.UNet2D(in_channels=1, widths=(1, 2, 2), order=order, rngs=nnx.Rngs(0))
    )
    net.eval()
    graphdef, state = nnx.split(net)
    run = fast_jit(lambda x: nnx.merge(graphdef, state)(x))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 10, 1)))
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    logits = run(x)
    assert logits.shape == (2, 7, 10, 2)
    np.testing.assert_allclose(logits, run(padded)[:, :7, :10], rtol=1e-12)


def test_segmentation_loss_pixel_by_pixel(x64):
    rng = np.random.default_rng(0)
    y, mask = rng.normal(size=(2, 3, 4, 2)) * 3, rng.integers(0, 2, (2, 3, 4, 1))
    total = [np.log(np.exp(y[i]).sum()) - y[i][mask[i][0]] for i in np.ndindex(mask.shape[:-1])]
    ours = unet2d.segmentation(jnp.asarray(y), jnp.asarray(mask, jnp.float32))
    assert ours == pytest.approx(np.mean(total))
    with pytest.raises(ValueError, match="does not fit the logits"):
        unet2d.segmentation(jnp.asarray(y), jnp.zeros((2, 3, 3, 1)))


# ---------------------------------------------------------------- the pipeline


def test_fills():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((2, 4, 4, 3)), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 2, (2, 4, 4, 1)))
    inside = np.broadcast_to(np.asarray(mask) == 1, x.shape)
    for fill in pipeline.FILLS:
        seen = np.asarray(pipeline.masked(x, mask, fill, jax.random.key(0)))
        np.testing.assert_array_equal(seen[inside], np.asarray(x)[inside])
        outside = seen[~inside].reshape(-1, 3)  # all channels of a pixel
        if fill in ("zero", "white"):
            np.testing.assert_array_equal(outside, float(fill == "white"))
        else:
            assert ((outside >= 0) & (outside < 1)).all() and outside.std() > 0.1
            assert (outside[:, 0] == outside[:, 1]).all() == (fill == "grey_noise")
    with pytest.raises(ValueError, match="draws noise"):
        pipeline.masked(x, mask, "grey_noise")
    with pytest.raises(ValueError, match="does not fit the image"):
        pipeline.masked(x, mask[:, :3])


def test_the_classifier_sees_what_the_segmenter_leaves(x64):
    net = in_float64(lambda: unet2d.UNet2D(in_channels=2, widths=(2, 2), rngs=nnx.Rngs(0)), 3)
    segmenter = programs(net), variables(net)
    model = cnn(1)
    graphs, (params, rest) = programs(model), variables(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 6, 2)))
    batch = {"image": x, "label": jnp.asarray([0, 1, 2])}
    net.eval()
    graphdef, state = nnx.split(net)
    p = fast_jit(lambda x: jax.nn.softmax(nnx.merge(graphdef, state)(x), -1))(x)[..., 1]
    method = pipeline.Pipeline(threshold=float(np.quantile(p, 0.6)))

    @fast_jit
    def run(x):
        mask = pipeline.predicted_mask(segmenter[0], *segmenter[1], x, method.threshold)
        loss, (values, _) = pipeline.objective(
            graphs, params, rest, batch, method, segmenter=segmenter
        )
        seen = {**batch, "image": x * jnp.broadcast_to(mask, x.shape)}
        plain, _ = erm.objective(graphs, params, rest, seen, erm.ERM())
        return mask, loss, values, plain

    mask, loss, values, plain = run(x)
    np.testing.assert_array_equal(mask[..., 0], np.asarray(p) > method.threshold)
    assert 0 < mask.mean() < 1
    assert loss == pytest.approx(float(plain), rel=1e-12) and loss == values["loss"]
    with pytest.raises(ValueError, match="without a segmenter needs batch entries mask"):
        pipeline.objective(graphs, params, rest, batch, method)


# ---------------------------------------------------------------- HAM


def outputs(seed=0, b=3, side=4, k=2):
    rng = np.random.default_rng(seed)
    return ham_network.Outputs(
        rng.normal(size=(b, k)),
        rng.normal(size=b),
        rng.random((b, side, side, k)),
        rng.random((b, side, side)),
    )


def sure(v, threshold=0.4):
    return 1 / (1 + np.exp(-100 * (v - threshold)))


def test_map_losses_image_by_image(x64):
    out, targets = outputs(), np.array([[1, 0], [0, 0], [1, 1]])
    bounds = []
    for k in range(2):
        rows = []
        for i in np.flatnonzero(targets[:, k]):
            c, a = out.class_cams[i, ..., k], out.anomaly_cam[i]
            rows.append((c.sum() - (np.minimum(c, a) * sure(c)).sum()) / c.sum())
        bounds.append(np.mean(rows))
    unions = []
    for i in np.flatnonzero(targets.any(1)):
        a, c = out.anomaly_cam[i], (out.class_cams[i] * targets[i]).max(-1)
        unions.append((a.sum() - (np.minimum(c, a) * sure(a)).sum()) / a.sum())
    run = fast_jit(lambda out, targets: ham.map_losses(out, targets, 0.4))
    ours = run(jax.tree.map(jnp.asarray, out), jnp.asarray(targets, jnp.float64))
    np.testing.assert_allclose(ours, [np.mean(bounds), np.mean(unions)], rtol=1e-9)
    none = run(jax.tree.map(jnp.asarray, out), jnp.zeros((3, 2)))
    np.testing.assert_array_equal(none, [0, 0])


def test_mask_loss_and_refined_maps(x64):
    maps = outputs().class_cams
    masks = np.random.default_rng(1).integers(0, 2, (3, 4, 4, 1)).astype(float)
    present = np.array([[1.0, 0], [0, 0], [1, 0]])  # the second class is nowhere
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    better = sure((maps - low) / (high - low))
    refined, mask_loss = fast_jit(ham.refined), fast_jit(ham.mask_loss)
    np.testing.assert_allclose(refined(jnp.asarray(maps)), better, rtol=1e-9)
    even = refined(jnp.ones(maps.shape))
    assert np.isfinite(even).all()
    top = sum(((better[i, ..., 0] - masks[i, ..., 0]) ** 2).sum() for i in (0, 2))
    size = sum(better[i, ..., 0].sum() + masks[i].sum() for i in (0, 2))
    ours = mask_loss(jnp.asarray(better), jnp.asarray(masks), jnp.asarray(present))
    assert ours == pytest.approx(top / size)
    assert mask_loss(jnp.asarray(better), jnp.asarray(masks), jnp.zeros((3, 2))) == 0


def test_labels_and_logits_of_ham(x64):
    out = jax.tree.map(jnp.asarray, outputs())
    labels = jnp.asarray([1, 0, 2])
    middle, without = ham.HAM(normal=1), ham.HAM(normal=None)
    np.testing.assert_array_equal(
        ham.findings(labels, 2, middle, jnp.float64), [[0, 0], [1, 0], [0, 1]]
    )
    np.testing.assert_array_equal(
        ham.findings(labels, 3, without, jnp.float64), [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    )
    hot = jnp.asarray([[1, 1], [0, 1]])
    np.testing.assert_array_equal(ham.findings(hot, 2, middle, jnp.float64), hot)
    every = ham.all_logits(out, middle)
    np.testing.assert_array_equal(every[:, 1], -out.anomaly)
    np.testing.assert_array_equal(every[:, 2], out.logits[:, 1])
    assert ham.all_logits(out, without) is out.logits


def test_pooling_lies_between_mean_and_maximum(x64):
    f = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
    expected = np.log(np.exp(6 * f).mean((1, 2))) / 6
    np.testing.assert_allclose(ham_network.log_sum_exp_pool(jnp.asarray(f)), expected)
    big = ham_network.log_sum_exp_pool(jnp.asarray(f) * 1e4)
    np.testing.assert_allclose(big, 1e4 * f.max((1, 2)), rtol=1e-4)


def test_the_published_network_keeps_an_eighth_of_the_size():
    net = nnx.eval_shape(lambda: ham_network.HAMNet(num_classes=3, rngs=nnx.Rngs(0)))
    net.eval()
    graphdef, state = nnx.split(net)
    out = jax.eval_shape(
        lambda s, x: nnx.merge(graphdef, s)(x),
        state,
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
    assert out.class_cams.shape == (1, 8, 8, 3) and out.anomaly_cam.shape == (1, 8, 8)
    assert out.logits.shape == (1, 3) and out.anomaly.shape == (1,)
    rates = [stage[-1].conv2.kernel_dilation[0] for stage in net.stages]
    assert rates == [1, 1, 2, 4]
