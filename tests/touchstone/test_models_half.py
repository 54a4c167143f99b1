"""bfloat16 run, not only traced: a forward pass and a training step beside those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.touchstone.test_models import FAST, drawn, volume
from tests.touchstone.tiny_models import BATCHES, TINY
from touchstone_jax.losses import loss_for, segmentation_loss

ALWAYS = ("diff_unet", "segvol")  # the rest takes minutes to compile, or trains as U-Nets do
# Half precision has three digits; the worst voxel's share of the largest logit, and the cosine
# between the gradients of networks as small as these.
LOSS, FORWARD, COSINE = 0.05, 0.1, 0.9
# NexToU chooses other neighbours, MedFormer's deepest norms see 8 voxels.
LOOSE = {"nextou": (0.25, 0.5), "medformer": (0.25, 0.5)}


def step_of(name, dtype):
    """Logits in evaluation, and loss and gradients of training, by one program."""
    model = drawn(name, dtype=dtype)
    # LHU-Net multiplies values four times over: variances near those drawn make them infinite.
    stats = jax.tree.map_with_path(
        lambda path, a: jnp.full_like(a, 4 if "var" in jax.tree_util.keystr(path) else 0),
        nnx.state(model, nnx.BatchStat),
    )
    nnx.update(model, stats)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    x = volume(name, batch=min(BATCHES.get(name, 1), 2))
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, x.shape[:4]), jnp.uint8)
    annotated = jnp.ones((len(x), 3), bool)
    named = loss_for(getattr(model, "activation", "softmax"))

    def run(params, rest, x):
        def loss(params):
            network = nnx.merge(graphdef, params, rest)
            network.train()

            def terms(logits):
                scales = getattr(network, "scale_weights", None)
                return segmentation_loss(logits, labels, annotated, loss=named, weights=scales)

            if not hasattr(network, "training_loss"):
                return terms(network(x))["loss"]
            key = jax.random.key(5)
            return network.training_loss(x, labels, annotated, key, terms)["loss"]

        network = nnx.merge(graphdef, params, rest)
        network.eval()
        return network(x), *jax.value_and_grad(loss)(params)

    traced = jax.jit(run).trace(params, rest, x)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own gradient of attention mixes dtypes
        program = traced.lower()
    return program.compile(compiler_options=FAST)(params, rest, x)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.slow) for n in TINY]
)
def test_half_precision_trains_and_predicts_as_float32_does(name):
    exact, half = (step_of(name, dtype) for dtype in ("float32", "bfloat16"))
    forward, cosine = LOOSE.get(name, (FORWARD, COSINE))
    logits, losses, gradients = zip(exact, half, strict=True)
    assert {out.dtype for out in (*logits, *losses)} == {jnp.dtype("float32")}
    off, most = jnp.abs(logits[0] - logits[1]).max(), jnp.abs(logits[0]).max()
    assert 0 < float(off) < forward * float(most)
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=LOSS)
    one, other = (
        np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(tree)])
        for tree in gradients
    )
    assert np.isfinite(other).all()
    assert one @ other > cosine * np.linalg.norm(one) * np.linalg.norm(other) > 0
