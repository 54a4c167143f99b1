"""All families trained, moved to another mesh and asked to predict: minutes, so `-m slow` only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch import mesh as meshes
from launch.checkpoint import Store
from launch.experiment import Checkpoint, Mesh
from launch.stream import Stream
from launch.train import abstract_state, compile_step
from tests.touchstone.tiny_models import SIDES, TINY, sides
from tests.touchstone.toy_prepared import plan, write_set
from touchstone_jax import tasks

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_set(tmp_path_factory.mktemp("prepared"), 2, plan(), shape=(36, 34, 66)))


def task_of(name, folder):
    model = {"name": name, **TINY[name]}
    if name == "uniseg":
        model["stems"] = (1, 2)
    return tasks.Segmenter(
        optimizer=optax.chain(optax.clip_by_global_norm(12.0), optax.adam(5e-3)),
        data=folder,
        model=model,
        patch=sides(name) if name in ("uniseg", *SIDES) else (16, 16, 16),
        augmentation={"preset": "none"},
        batch_dice=True,
        foreground=1.0,
        validation=("case_0",),
    )


@pytest.mark.parametrize("name", TINY)
def test_a_family_learns_moves_and_predicts(name, folder, tmp_path):
    task, one = task_of(name, folder), meshes.make(Mesh(data=1))
    stream = Stream(task.dataset("train"), 0, 2, one)
    placed = abstract_state(task, one)
    update = compile_step(task, placed, stream, one)
    state = jax.jit(task.init, out_shardings=meshes.shardings(placed))(jax.random.key(0))
    batch, losses = stream[0], []
    for step in range(20):
        state, values = update(state, batch, jax.random.key(step))
        losses.append(float(values["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    store = Store(tmp_path, Checkpoint(every=1, keep=1), {})
    store.save(20, state, {})
    store.close()
    many = meshes.make(Mesh(data=1, fsdp=8))
    store = Store(tmp_path, Checkpoint(every=1, keep=1), {})
    moved, step = store.restore(abstract_state(task, many))
    store.close()
    assert step == 20
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(a, b)
    network, told, _ = task.predictor(jax.device_get(moved))
    features, head = network if isinstance(network, tuple) else (network, lambda logits: logits)
    x = jnp.zeros((1, *told["patch"], 1), jnp.float32)
    logits = head(features(x))
    assert logits.shape == (1, *told["patch"], 10) and bool(jnp.isfinite(logits).all())
