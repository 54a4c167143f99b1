"""Devices: the mesh and its axes, how each array of the state and of a batch is split."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch import experiment
from launch.experiment import MESH_AXES, SetupError

# Splitting a bias saves nothing and costs a message.
SMALLEST_SPLIT = 4096
# Seen with jax 0.10: sums over a convolution's result, such as a norm's mean, and gradients came
# out as many times too large as there are parts, without any error.
MISCOMPILED = "as XLA miscompiles convolutions that are split in space and in channels"
Rules = Sequence[tuple[str, tuple]]


def make(settings: experiment.Mesh) -> jax.sharding.Mesh:
    """The mesh (data, fsdp, space); data = -1 takes all devices that the others leave.

    Raises:
        SetupError: the axes do not fit the devices or each other, or leave some devices of another
            host unused.
    """
    devices, others = jax.devices(), settings.fsdp * settings.space
    data = settings.data if settings.data > 0 else len(devices) // others
    asked = f"config.mesh data={settings.data} fsdp={settings.fsdp} space={settings.space}"
    if data * others > len(devices) or data < 1 or (settings.data < 0 and len(devices) % others):
        raise SetupError(
            f"{asked} does not fit the {len(devices)} devices; data·fsdp·space must divide them "
            "(data=-1: the rest)"
        )
    if settings.fsdp > 1 and settings.space > 1:
        raise SetupError(f"{asked}: fsdp and space cannot both be above 1, {MISCOMPILED}")
    if jax.process_count() > 1 and data * others != len(devices):
        raise SetupError(
            f"{asked} uses {data * others} of {len(devices)} devices: with several hosts "
            "data·fsdp·space must be all of them"
        )
    return _mesh((data, settings.fsdp, settings.space), devices[: data * others])


def alone() -> jax.sharding.Mesh:
    """The mesh of this process' first device, for work that processes do apart."""
    return _mesh((1, 1, 1), jax.local_devices()[:1])


def _mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    # Explicit axes fail on convolutions (they would need out_sharding everywhere).
    kinds = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


# ------------------------------------------------------------------------- batches


def row_parts(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the rows of a batch are split: a batch size must be a multiple."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: jax.sharding.Mesh, shape: Sequence[int]) -> NamedSharding:
    """How a batch array (rows, …) is split: rows over data and fsdp, depth over space.

    Depth is the second axis of arrays with at least three: of volumes (rows, depth, height, width,
    channels), or the height of images. An axis that `space` does not divide stays whole.
    """
    space = mesh.shape["space"]
    deep = space > 1 and len(shape) >= 3 and shape[1] % space == 0
    rows = ("data", "fsdp")
    return NamedSharding(mesh, PartitionSpec(rows, "space") if deep else PartitionSpec(rows))


# ------------------------------------------------------------------------- the state


def place(abstract: Any, mesh: jax.sharding.Mesh, rules: Rules = ()) -> Any:
    """The abstract state with a sharding in each leaf: the target of init and of restore.

    The first of `rules` whose pattern is found in a leaf's path ("params/blocks/0/kernel",
    "opt_state/0/mu/blocks/0/kernel") says along which mesh axis each dimension is split. Without
    one, large arrays are split over fsdp along their largest dimension that it divides.

    Raises:
        SetupError: a rule matches no array, names more dimensions than an array has or an axis
            that does not divide its dimension, or splits what `space` needs whole.
    """
    used: set[str] = set()

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = _largest(leaf.shape, mesh.shape["fsdp"])
        for pattern, axes in rules:
            if re.search(pattern, name):
                used.add(pattern)
                spec = _by_rule(pattern, axes, name, leaf.shape, mesh)
                break
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    placed = jax.tree_util.tree_map_with_path(one, abstract)
    for pattern, _ in rules:
        if pattern not in used:
            raise _unmatched(pattern, abstract)
    return placed


def _largest(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    fitting = [i for i, n in enumerate(shape) if n % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < SMALLEST_SPLIT or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(*["fsdp" if i == axis else None for i in range(axis + 1)])


def _by_rule(
    pattern: str, axes: tuple, name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> PartitionSpec:
    if len(axes) > len(shape):
        raise SetupError(
            f"config.mesh.rules: {pattern!r} splits {len(axes)} dimensions {axes}, but {name} has "
            f"the shape {shape}"
        )
    if mesh.shape["space"] > 1 and any(axis and mesh.shape[axis] > 1 for axis in axes):
        raise SetupError(
            f"config.mesh.rules: {pattern!r} splits {name}, but config.mesh.space = "
            f"{mesh.shape['space']} needs it whole, {MISCOMPILED}"
        )
    for axis, size in zip(axes, shape, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise SetupError(
                f"config.mesh.rules: {pattern!r} splits {name} of shape {shape} along {axes}, but "
                f"{axis}={mesh.shape[axis]} does not divide {size}"
            )
    return PartitionSpec(*axes)


def _unmatched(pattern: str, abstract: Any) -> SetupError:
    every = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(abstract)
    ]
    # The optimizer's arrays are called as the parameters that they belong to, behind a prefix.
    names = sorted(every, key=lambda name: not name.startswith("params/"))
    return SetupError(
        f"config.mesh.rules: {pattern!r} is not used by any of the {len(names)} arrays (or earlier "
        f"rules take all that it matches); arrays are {', '.join(names[:8])}"
        f"{' …' * (len(names) > 8)}"
    )


def shardings(placed: Any) -> Any:
    """The shardings alone of what `place` returned."""
    return jax.tree.map(lambda leaf: leaf.sharding, placed)
