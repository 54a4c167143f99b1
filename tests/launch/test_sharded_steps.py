"""Real steps split over data, fsdp and space are the step of one device: ISNet and a 3-D U-Net."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isnet_jax.tasks import MaskedClassifier
from launch import mesh as meshes
from launch.experiment import Mesh, SetupError
from launch.spatial import refuse_small_maps
from launch.stream import Stream
from launch.train import trace_step
from tests.touchstone.toy_prepared import write_set
from touchstone_jax.tasks import Segmenter

FAST = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def promoted() -> Iterator[None]:
    """optax's schedules mix types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def isnet(tmp_path_factory: pytest.TempPathFactory) -> MaskedClassifier:
    """An ISNet of a narrow ResNet-18 with BatchNorm on 32 x 32 images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("train", "val"):
        image = rng.random((8, 32, 32, 3), np.float32)
        mask = rng.random((8, 32, 32, 1)) > 0.5
        np.savez(folder / f"{name}.npz", image=image, mask=mask, label=np.arange(8) % 3)
    return MaskedClassifier(
        optimizer=optax.sgd(0.1, 0.9),
        data={"source": "npz_folder", "folder": str(folder), "num_classes": 3},
        model={"name": "resnet18", "width": 8, "stem": "small"},
    )


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """A U-Net of two stages on patches of 8³ with augmentation and a running mean."""
    return Segmenter(
        optimizer=optax.sgd(0.1, 0.9),
        data=str(write_set(tmp_path_factory.mktemp("prepared"))),
        model={"name": "unet", "widths": (4, 8), "convs": 1, "decoder_convs": 1},
        patch=8,
        ema=0.9,
        per_case=8,
        augmentation={"preset": "none", "noise_p": 1.0},
    )


def wide(tree: Any) -> Any:
    """float32 -> float64, on the host, in which a wrong sum stands out from rounding."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) if x.dtype == jnp.float32 else np.asarray(x), tree
    )


def step_on(task: Any, data: Any, state: Any, shape: Mesh) -> dict[str, np.ndarray]:
    """Path -> array of the state and the metrics after one step from `state` (on the host)."""
    mesh = meshes.make(shape)
    placed = meshes.place(state, mesh)
    stream = Stream(data, 0, 8, mesh)
    update = trace_step(task, placed, stream, mesh).lower().compile(compiler_options=FAST)
    batch = stream[0]
    assert shape.space == 1 or any("space" in x.sharding.spec for x in batch.values())
    split = [x for x in jax.tree.leaves(meshes.shardings(placed)) if "fsdp" in x.spec]
    assert shape.fsdp == 1 or len(split) > 3
    made = update(
        jax.device_put(state, meshes.shardings(placed)),
        batch,
        jax.device_put(jax.random.key(3), meshes.replicated(mesh)),
    )
    leaves = jax.tree_util.tree_leaves_with_path(made)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], floor: float = 1e-2
) -> None:
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        # A bias before a norm has a gradient of nothing but rounding, hence the floor.
        scale = max(floor, np.abs(array).max(initial=0))
        assert np.abs(got[path] - array).max(initial=0) <= 1e-5 * scale, path


TOGETHER = [Mesh(2, 4), Mesh(2, 1, 4)]
EACH = [Mesh(8), Mesh(1, 8), Mesh(1, 1, 4)]
SHAPES = [TOGETHER, pytest.param(EACH, marks=pytest.mark.slow)]


@pytest.mark.parametrize("shapes", SHAPES, ids=["together", "each"])
def test_isnet_steps_are_those_of_one_device(
    shapes: list[Mesh], isnet: MaskedClassifier, x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshes, "SMALLEST_SPLIT", 64)  # there is nothing larger here
    state, data = wide(jax.jit(isnet.init)(jax.random.key(0))), isnet.dataset("train").map(wide)
    expected = step_on(isnet, data, state, Mesh(1))
    for shape in shapes:
        assert_same(step_on(isnet, data, state, shape), expected)


@pytest.mark.parametrize("shapes", SHAPES, ids=["together", "each"])
def test_unet_steps_are_those_of_one_device(
    shapes: list[Mesh], unet: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshes, "SMALLEST_SPLIT", 64)
    state, data = jax.device_get(jax.jit(unet.init)(jax.random.key(0))), unet.dataset("train")
    expected = step_on(unet, data, state, Mesh(1))
    for shape in shapes:
        assert_same(step_on(unet, data, state, shape), expected, floor=0.1)


def test_maps_smaller_than_a_kernel_are_refused_where_xla_miscompiles_them() -> None:
    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        how = {"window_strides": (1, 1), "padding": "SAME"}
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, **how, dimension_numbers=dimensions)

    def traced(depth: int) -> Any:
        like = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, depth, 8, 1), (3, 3, 1, 1))]
        return jax.jit(jax.jit(step)).trace(*like).jaxpr

    halves, quarters = meshes.make(Mesh(2, 1, 2)), meshes.make(Mesh(2, 1, 4))
    refuse_small_maps(traced(4), halves)
    refuse_small_maps(traced(4), quarters)
    refuse_small_maps(traced(2), meshes.make(Mesh(8)))
    for depth, split in ((2, halves), (6, quarters)):
        told = f"from {depth} to {depth} along the split axis under a kernel of 3"
        with pytest.raises(SetupError, match=told):
            refuse_small_maps(traced(depth), split)
