"""Diff-UNet: the reference's network and sampler, the mean over steps, its loss, seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.touchstone.test_models import FAST, drawn
from tests.touchstone.tiny_models import TINY
from tests.touchstone.toy_prepared import write_set
from touchstone_jax import tasks
from touchstone_jax.losses import IGNORE
from touchstone_jax.models import convert
from touchstone_jax.models.diffusion import ddim, fused, kept_share, noised, respaced


def compiled(call, *inputs):
    return jax.jit(call).lower(*inputs).compile(compiler_options=FAST)


def test_network_and_sampler_are_the_references(golden):
    path = golden / "arch" / "diffunet.npz"
    stored = convert.read_arrays(path)
    arrays = convert.read_arrays(path, "sd/")
    model = convert.from_torch("diff_unet", arrays, widths=(8, 8, 16, 32, 64, 8))
    graphdef, state = nnx.split(model)

    def run(state, image, noisy, time, noise):
        model = nnx.merge(graphdef, state)
        levels = model.embed(image)
        once = model.denoise(image, levels, noisy, time)
        return once, ddim(lambda x, t: model.denoise(image, levels, x, t), noise, 10)

    image, noisy, noise = (
        jnp.asarray(np.moveaxis(stored[key], 1, -1)) for key in ("x", "in/x_t", "in/ddim_noise")
    )
    inputs = (state, image, noisy, jnp.asarray(stored["in/t"].astype(np.int32)), noise)
    once, steps = compiled(run, *inputs)(*inputs)
    np.testing.assert_array_equal(respaced(10), stored["in/timestep_map"])
    pairs = [(once, stored["logits"]), (jnp.clip(steps[-1], -1, 1), stored["in/ddim_pred_xstart"])]
    pairs += [(steps[i], stored[f"in/ddim_all_model_outputs_{i}"]) for i in range(10)]
    for got, expected in pairs:
        expected = np.moveaxis(expected, 1, -1)
        assert np.abs(np.asarray(got) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_noise_is_added_by_the_product_of_betas():
    shares = kept_share()
    assert shares.dtype == np.float32 and len(shares) == 1000
    product = 1.0
    for t, share in enumerate(shares):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert share == pytest.approx(product, rel=1e-5)
    x, noise = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    got = noised(jnp.asarray(x), jnp.asarray([0, 700]), jnp.asarray(noise))
    for one, at in enumerate((0, 700)):
        a = float(shares[at])
        np.testing.assert_allclose(got[one], a**0.5 * x[one] + (1 - a) ** 0.5 * noise[one], 1e-5)


def test_the_mean_over_steps_is_the_slow_one():
    outputs = np.random.default_rng(1).normal(size=(3, 4, 1, 2, 1, 1, 2)).astype(np.float32) * 2
    total = np.zeros(outputs.shape[2:])
    weights = np.zeros(outputs.shape[2:])
    for at in np.ndindex(total.shape):
        for i in range(4):
            p = 1 / (1 + np.exp(-np.mean([outputs[(r, i, *at)] for r in range(3)])))
            unsure = -max(p, 1e-3) * np.log(max(p, 1e-3))
            weight = np.exp(1 / (1 + np.exp(-(i + 1) / 4)) * (1 - unsure))
            clipped = [np.clip(outputs[(r, i, *at)], -1, 1) for r in range(3)]
            total[at] += weight * np.mean(clipped)
            weights[at] += weight
    np.testing.assert_allclose(fused(jnp.asarray(outputs)), total / weights, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def images():
    one = np.random.default_rng(2).normal(size=(1, 32, 16, 16, 2)).astype(np.float32)
    return jnp.asarray(np.concatenate([one, one + 1, one]))


@pytest.fixture(scope="module")
def sampled(images):
    """Label maps by seed; the first twice."""

    def run(seed):
        graphdef, state = nnx.split(drawn("diff_unet", seed=seed, runs=2))
        call = compiled(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
        return np.asarray(call(state, images)), np.asarray(call(state, images))

    return run(0), run(1)


def test_a_seed_repeats_its_sample_and_another_does_not(sampled):
    (first, again), (other, _) = sampled
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert first.shape == (3, 32, 16, 16, 3) and not first[..., 0].any()
    assert 0 < np.abs(first[..., 1:]).max() <= 1


def test_the_place_in_a_batch_makes_no_difference(sampled):
    made = sampled[0][0]
    np.testing.assert_allclose(made[0], made[2], rtol=0, atol=1e-6)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_loss_is_that_of_the_logits_and_the_squared_error(images):
    graphdef, state = nnx.split(drawn("diff_unet"))
    labels = jnp.zeros((3, 32, 16, 16), jnp.uint8).at[:, 8:20, 4:9].set(1).at[:, 20:, 9:].set(2)
    labels = labels.at[:, 0].set(IGNORE)

    def run(state, annotated, rng):
        seen = []

        def loss(logits):
            seen.extend(logits)
            return {"loss": jnp.float32(3)}

        model = nnx.merge(graphdef, state)
        return model.training_loss(images, labels, annotated, rng, loss), seen[0]

    everything, nothing = jnp.ones((3, 3), bool), jnp.zeros((3, 3), bool)
    half = everything.at[:, 2].set(False)
    call = compiled(run, state, everything, jax.random.key(0))
    for annotated in (everything, half, nothing):
        terms, logits = call(state, annotated, jax.random.key(0))
        error, count = 0.0, 0
        for organ in (1, 2):
            p = 1 / (1 + np.exp(-np.asarray(logits[..., organ], np.float64)))
            known = np.asarray(labels != IGNORE) & bool(annotated[0, organ])
            error += np.square(p - np.asarray(labels == organ))[known].sum()
            count += known.sum()
        assert float(terms["squared_error"]) == pytest.approx(error / max(count, 1), rel=1e-4)
        assert float(terms["loss"]) == pytest.approx(3 + error / max(count, 1), rel=1e-5)
    again = call(state, everything, jax.random.key(0))[1]
    other = call(state, everything, jax.random.key(1))[1]
    np.testing.assert_array_equal(again, call(state, nothing, jax.random.key(0))[1])
    assert float(jnp.abs(again - other).max()) > 1e-3


def test_the_task_trains_by_the_networks_own_loss(tmp_path):
    task = tasks.Segmenter(
        optimizer=optax.sgd(0.1),
        data=str(write_set(tmp_path, 1)),
        model={"name": "diff_unet", **TINY["diff_unet"]},
        patch=(32, 16, 16),
        validation=("case_0",),
    )
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((1, 32, 16, 16, 1), "float16"),
        "labels": jax.ShapeDtypeStruct((1, 32, 16, 16), "uint8"),
        "annotated": jax.ShapeDtypeStruct((1, 10), "bool"),
    }
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        _, values = jax.eval_shape(task.step, state, batch, jax.random.key(0))
    terms = {"cross_entropy", "dice_loss", "squared_error"}
    assert set(values) == {"loss", "gradient_norm", *terms}


def test_sides_that_do_not_halve_four_times_are_refused():
    model = drawn("diff_unet")
    x = jax.ShapeDtypeStruct((1, 32, 24, 16, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"diff_unet: volume \(32, 24, 16\) must be a multiple"):
        nnx.eval_shape(lambda m, x: m(x), model, x)
