"""The ISNet step is the same program on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from isnet_jax import isnet, models

BATCH, STEPS = 8, 2


@pytest.fixture
def problem(x64):
    """Two SGD steps of Selective ISNet with BatchNorm on batch statistics, in float64."""
    model = models.create("simple_cnn", num_classes=3, widths=(8, 8), pooled=2, rngs=nnx.Rngs(0))
    method = isnet.ISNet()
    graphs = isnet.programs(model, method.composite)
    wide = jax.tree.map(lambda v: np.asarray(v, np.float64), isnet.variables(model))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((BATCH, 16, 16, 1)),
        "mask": (rng.random((BATCH, 16, 16, 1)) > 0.5).astype(np.float64),
        "label": rng.integers(0, 3, BATCH).astype(np.int32),
    }

    def steps(params, rest, batch):
        for _ in range(STEPS):
            (loss, (_, rest)), grads = jax.value_and_grad(
                lambda p, r: isnet.objective(graphs, p, r, batch, method), has_aux=True
            )(params, rest)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return loss, params, rest

    return steps, wide, batch


def shard(mesh, value):
    """The largest axis over fsdp, where it divides."""
    sizes = [n if n % mesh.shape["fsdp"] == 0 else 0 for n in value.shape]
    spec = [None] * value.ndim
    if value.ndim and max(sizes) > 0:
        spec[int(np.argmax(sizes))] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (4, 2)], ids=["data", "fsdp", "both"])
def test_eight_devices_equal_one(problem, shape):
    steps, (params, rest), batch = problem
    one = jax.jit(steps)(params, rest, batch)
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    over_batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    params, rest = (
        jax.tree.map(lambda v: jax.device_put(v, shard(mesh, v)), t) for t in (params, rest)
    )
    batch = {k: jax.device_put(jnp.asarray(v), over_batch) for k, v in batch.items()}
    eight = jax.jit(steps)(params, rest, batch)
    assert len(jax.tree.leaves(eight)[1].sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-9, atol=1e-12)
