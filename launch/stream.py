"""Data as a pure function of the step: the global batch is dataset[step], each host its slice."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from launch.experiment import Batch, SetupError
from launch.mesh import batch_sharding, row_parts

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def _rows(size: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Those of `size` rows that this host's devices hold, ascending.

    Asked of the sharding, as the order of a mesh's devices is not always that of the hosts, and
    hosts along the axis `space` hold the same rows.
    """
    sharding = batch_sharding(mesh, (size,))
    parts: Any = sharding.addressable_devices_indices_map((size,)).values()  # none of them is None
    return sorted({row for (part,) in parts for row in range(*part.indices(size))})


class _Slices:
    """Source of grain: this host's rows of every global batch of consecutive items, stacked."""

    def __init__(self, items: grain.MapDataset, size: int, rows: Iterable[int]) -> None:
        self._items, self._size, self._rows = items, size, rows

    def __len__(self) -> int:
        return len(self._items) // self._size

    def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
        found = [self._items[int(batch) * self._size + row] for row in self._rows]
        return {name: np.stack([item[name] for item in found]) for name in found[0]}


def _put(host: dict[str, np.ndarray], size: int, mesh: jax.sharding.Mesh) -> Batch:
    """This host's rows -> global device arrays (size, …)."""
    rows = _rows(size, mesh)
    placed: Batch = {}
    at = {row: i for i, row in enumerate(rows)}
    for name, value in host.items():
        array = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
        shape = (size, *array.shape[1:])

        def part(index: Any, array: np.ndarray = array) -> np.ndarray:
            begin, end, _ = index[0].indices(size)  # a device's rows lie side by side
            first = at[begin]
            return array[(slice(first, first + end - begin), *index[1:])]

        sharding = batch_sharding(mesh, shape)
        placed[name] = jax.make_array_from_callback(shape, sharding, part)
    return placed


class Stream:
    """The training batches: `stream[step]` is always the same, however one got there."""

    def __init__(
        self, dataset: grain.MapDataset, seed: int, batch_size: int, mesh: jax.sharding.Mesh
    ) -> None:
        if batch_size % row_parts(mesh):
            raise SetupError(
                f"config.batch_size = {batch_size} must be a multiple of the "
                f"{row_parts(mesh)} devices along config.mesh data and fsdp"
            )
        self.mesh, self.batch_size = mesh, batch_size
        # Not truly endless: grain divides the length as a float, which must hold it exactly.
        endless = dataset.shuffle(seed=seed).repeat(2**53 // max(1, len(dataset)))
        slices = _Slices(endless, batch_size, _rows(batch_size, mesh))
        self._local = grain.MapDataset.source(slices)
        self._item = dataset[0]

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a batch.

        Raises:
            SetupError: an item is not a flat dict of numbers, or the mesh axis `space` divides
                the depth of no array.
        """
        if not isinstance(self._item, dict):
            raise SetupError(f"dataset items must be flat dicts, not {type(self._item).__name__}")
        shapes = {}
        for name, value in self._item.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biufcV":
                raise SetupError(f"dataset item {name!r} has type {array.dtype}, legal: numbers")
            shape = (self.batch_size, *array.shape)
            shapes[name] = jax.ShapeDtypeStruct(
                shape,
                jax.dtypes.canonicalize_dtype(array.dtype),
                sharding=batch_sharding(self.mesh, shape),
            )
        self._refuse_idle_space(shapes)
        return shapes

    def _refuse_idle_space(self, shapes: dict[str, Any]) -> None:
        split = any("space" in one.sharding.spec for one in shapes.values())
        if self.mesh.shape["space"] > 1 and not split:
            told = ", ".join(f"{name} {one.shape[1:]}" for name, one in shapes.items())
            raise SetupError(
                f"config.mesh.space = {self.mesh.shape['space']} divides the depth (first "
                f"dimension of an item's arrays of two or more) of none: {told}"
            )

    def __getitem__(self, step: int) -> Batch:
        return _put(self._local[step], self.batch_size, self.mesh)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start … stop - 1, read ahead by threads."""
        reading = iter(self._local[start:stop].to_iter_dataset(READ_AHEAD))
        try:
            for host in reading:
                yield _put(host, self.batch_size, self.mesh)
        finally:
            reading.close()


def feeder(
    batch_size: int, mesh: jax.sharding.Mesh, before: Callable[[], None] = lambda: None
) -> Callable[[grain.MapDataset], Iterator[Batch]]:
    """`feed(dataset)`: device batches in file order, each of at least `batch_size` rows.

    The size is rounded up to a multiple of the devices that rows are split over. The last batch is
    filled up with repeated items; "valid", bool (batch,), tells the real ones. `before` is called
    before each of them; what it raises ends the evaluation.
    """
    size = -(-batch_size // row_parts(mesh)) * row_parts(mesh)

    def feed(dataset: grain.MapDataset) -> Iterator[Batch]:
        items, rows = len(dataset), np.asarray(_rows(size, mesh))
        if not items:
            raise ValueError("nothing to evaluate: the data set is empty")
        count = -(-items // size)
        local = grain.MapDataset.source(_Slices(dataset.repeat()[: count * size], size, rows))
        reading = iter(local.to_iter_dataset(READ_AHEAD))
        try:
            for number, host in enumerate(reading):
                before()
                valid = number * size + rows < items
                yield _put({**host, "valid": valid}, size, mesh)
        finally:
            reading.close()

    return feed
