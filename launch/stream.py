"""Data as a pure function of the step: the global batch is dataset[step], each host its slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from launch.experiment import Batch, SetupError
from launch.mesh import batch_sharding

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def _put(host: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """This host's rows (batch / hosts, …) -> global device arrays (batch, …)."""
    sharding, hosts, placed = batch_sharding(mesh), jax.process_count(), {}
    for name, value in host.items():
        array = np.asarray(value)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        shape = (array.shape[0] * hosts, *array.shape[1:])
        placed[name] = jax.make_array_from_process_local_data(sharding, array, shape)
    return placed


class Stream:
    """The training batches: `stream[step]` is always the same, however one got there."""

    def __init__(
        self, dataset: grain.MapDataset, seed: int, batch_size: int, mesh: jax.sharding.Mesh
    ) -> None:
        if batch_size % mesh.size:
            raise SetupError(
                f"config.batch_size = {batch_size} must be a multiple of the "
                f"{mesh.size} devices of the mesh"
            )
        hosts = jax.process_count()
        self.mesh, self.batch_size = mesh, batch_size
        # Local batch i of this host is block i·hosts + index, so that the rows of global batch i
        # are the same for any number of hosts.
        # Not truly endless: grain divides the length as a float, which must hold it exactly.
        endless = dataset.shuffle(seed=seed).repeat(2**53 // max(1, len(dataset)))
        self._local = endless.batch(batch_size // hosts)[jax.process_index() :: hosts]
        self._item = dataset[0]

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a batch.

        Raises:
            SetupError: an item is not a flat dict of numbers.
        """
        if not isinstance(self._item, dict):
            raise SetupError(f"dataset items must be flat dicts, not {type(self._item).__name__}")
        shapes = {}
        for name, value in self._item.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biufcV":
                raise SetupError(f"dataset item {name!r} has type {array.dtype}, legal: numbers")
            shapes[name] = jax.ShapeDtypeStruct(
                (self.batch_size, *array.shape),
                jax.dtypes.canonicalize_dtype(array.dtype),
                sharding=batch_sharding(self.mesh),
            )
        return shapes

    def __getitem__(self, step: int) -> Batch:
        return _put(self._local[step], self.mesh)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start … stop - 1, read ahead by threads."""
        reading = iter(self._local[start:stop].to_iter_dataset(READ_AHEAD))
        try:
            for host in reading:
                yield _put(host, self.mesh)
        finally:
            reading.close()


def feeder(
    batch_size: int, mesh: jax.sharding.Mesh
) -> Callable[[grain.MapDataset], Iterator[Batch]]:
    """`feed(dataset)`: device batches in file order, each of at least `batch_size` rows.

    The size is rounded up to a multiple of the devices. The last batch is filled up with repeated
    items; "valid", bool (batch,), tells the real ones.
    """
    size = -(-batch_size // mesh.size) * mesh.size

    def feed(dataset: grain.MapDataset) -> Iterator[Batch]:
        items, hosts, index = len(dataset), jax.process_count(), jax.process_index()
        if not items:
            raise ValueError("nothing to evaluate: the data set is empty")
        rows, count = size // hosts, -(-items // size)
        local = dataset.repeat()[: count * size].batch(rows)[index::hosts]
        reading = iter(local.to_iter_dataset(READ_AHEAD))
        try:
            for number, host in enumerate(reading):
                first = number * size + index * rows
                yield _put({**host, "valid": np.arange(first, first + rows) < items}, mesh)
        finally:
            reading.close()

    return feed
