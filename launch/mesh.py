"""Devices: joining the other hosts, the mesh and its axes, how each array of the state is split."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch import experiment
from launch.experiment import SetupError

# Splitting a bias saves nothing and costs a message.
SMALLEST_SPLIT = 4096


def join_hosts() -> None:
    """Connect to the other processes where a coordinator is named; before any use of a device."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS") and not jax.distributed.is_initialized():
        numbers = (os.environ.get(k) for k in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        count, index = (None if n is None else int(n) for n in numbers)
        jax.distributed.initialize(num_processes=count, process_id=index)


def make(settings: experiment.Mesh) -> jax.sharding.Mesh:
    """The mesh (data, fsdp); with `data` given, the first data·fsdp devices, else all of them.

    Raises:
        SetupError: more devices asked for than there are, or fsdp does not divide them.
    """
    devices, fsdp = jax.devices(), settings.fsdp
    data = settings.data if settings.data > 0 else len(devices) // fsdp
    if data * fsdp > len(devices) or data < 1 or (settings.data < 0 and len(devices) % fsdp):
        raise SetupError(
            f"config.mesh data={settings.data} fsdp={fsdp} does not fit the "
            f"{len(devices)} devices; data·fsdp must divide them (data=-1: the rest)"
        )
    # Explicit axes fail on convolutions (they would need out_sharding everywhere).
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * fsdp],
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Batches are split along their first dimension over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Split along the largest dimension that the fsdp axis divides."""
    fitting = [i for i, n in enumerate(shape) if n % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < SMALLEST_SPLIT or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(*["fsdp" if i == axis else None for i in range(axis + 1)])


def place(abstract: Any, mesh: jax.sharding.Mesh) -> Any:
    """The abstract state with a sharding in each leaf: the target of init and of restore."""

    def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, abstract)


def shardings(placed: Any) -> Any:
    """The shardings alone of what `place` returned."""
    return jax.tree.map(lambda leaf: leaf.sharding, placed)


def alone() -> jax.sharding.Mesh:
    """The mesh of this process' first device, for work that processes do apart."""
    return jax.make_mesh(
        (1, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.local_devices()[:1],
    )
