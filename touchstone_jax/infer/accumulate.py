"""Programs of `touchstone_jax.infer.sliding`: add windows to an accumulator, finish planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float32, UInt8

State = tuple[Float32[Array, "x y w c"], Bool[Array, ""]]
"""The accumulator, its third axis a ring, and whether a value was not finite."""

Norms = tuple[Float32[np.ndarray, " x"], Float32[np.ndarray, " y"], Float32[np.ndarray, ""]]
"""Summed weights along x and y, and at the plane; their product is that of a voxel."""


class Hoisted(NamedTuple):
    """A function of one array and perhaps more, and apart from it the arrays that it held.

    Attributes:
        call: (arrays, input, what it is told beside) to output.
        arrays: on the device.
        channels: of the output.
    """

    call: Callable[..., Array]
    arrays: list[Array]
    channels: int


def hoisted(
    function: Callable[..., Array],
    shape: Sequence[int],
    name: str,
    place: Sharding,
    told: Any = None,
) -> Hoisted:
    """Take the arrays out of a function: as constants they would be part of the program.

    Args:
        function: float32 ``shape`` to the same shape but for its last axis.
        shape: of the input.
        name: for messages.
        place: where the arrays go.
        told: arrays like those of its second argument; None for a function of one.

    Raises:
        ValueError: a result of another shape.
    """
    more = () if told is None else (told,)
    # JAX keeps traces by function: of a network that was changed in place it has the old arrays.
    closed, out = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(
        jax.ShapeDtypeStruct(tuple(shape), np.float32), *more
    )
    got = getattr(out, "shape", type(out).__name__)
    if not isinstance(got, tuple) or got[:-1] != tuple(shape[:-1]) or len(got) != len(shape):
        raise ValueError(
            f"{name} makes {got} of {tuple(shape)}; expected {(*shape[:-1], 'channels')}"
        )

    def call(arrays: Any, x: Array, told: Any = None) -> Array:
        return jax.core.eval_jaxpr(closed.jaxpr, arrays, x, *jax.tree.leaves(told))[0]

    return Hoisted(call, jax.device_put(closed.consts, place), got[-1])


class Programs:
    """The programs for one network, one size of windows and one tile; each is compiled once.

    Attributes:
        tile: voxels (x, y) of the accumulator.
        batch: windows a call of `add`.
    """

    def __init__(
        self,
        network: Hoisted,
        head: Hoisted | None,
        *,
        tile: Sequence[int],
        shape: Sequence[int],
        weights: Sequence[Float32[np.ndarray, " w"]],
        mirror: Sequence[int],
        place: Sharding,
        split: Sharding,
        told: Any = None,
    ) -> None:
        """Nothing is compiled yet.

        Args:
            network: (batch, *window, 1) to the channels that are summed.
            head: from summed channels to logits; None if they are the logits.
            tile: voxels (x, y) of the accumulator.
            shape: of the network's input.
            weights: of a window along each axis.
            mirror: axes along which windows may come mirrored.
            place: of all arrays but the windows, whole on each device.
            split: of the windows (batch, x, y, z, 1).
            told: arrays like those that the network is told of the windows of a batch.
        """
        self.tile, self.batch = tuple(tile), shape[0]
        self._network, self._head, self._shape = network, head, tuple(shape)
        self._weights, self._mirror = weights, tuple(mirror)
        self._place, self._split = place, split
        self._told = jax.tree.map(lambda a: self._like(a.shape, a.dtype), told)

    # ------------------------------------------------------------------ what is called

    def start(self) -> State:
        """An empty accumulator."""
        return self.compiled_start()

    def add(
        self,
        state: State,
        windows: Float32[np.ndarray, "b x y z 1"],
        flips: Bool[np.ndarray, "b 3"],
        at: np.ndarray,
        ring: int,
        told: Any = None,
    ) -> State:
        """Add the network's output on up to ``batch`` windows to the accumulator.

        Args:
            state: is used up.
            windows: as cut out of the image, mirrored where ``flips`` says so.
            flips: axes to turn the output back along.
            at: integers (b, 2), where each window begins in the accumulator.
            ring: place in the ring of the windows' first plane.
            told: what the network is told of each window, arrays (b, …).
        """
        filler = self.batch - len(windows)
        valid = np.arange(self.batch) < len(windows)
        windows, flips, at, told = jax.tree.map(
            lambda a: np.pad(a, [(0, filler), *[(0, 0)] * (a.ndim - 1)]),
            (windows, flips, at, told),
        )
        inputs = (windows, flips, at.astype(np.int32), valid, np.int32(ring), told)
        return self.compiled_add(state, self._network.arrays, *inputs)

    def labels(self, state: State, plane: int, norms: Norms) -> UInt8[Array, "x y"]:
        """Labels of one plane.

        Args:
            state: stays as it is.
            plane: its place in the ring.
            norms: summed weights.
        """
        return self._finished(self.compiled_labels, state, plane, norms)

    def logits(self, state: State, plane: int, norms: Norms) -> Float32[Array, "x y k"]:
        """As `labels`, the weighted mean of the logits."""
        return self._finished(self.compiled_logits, state, plane, norms)

    def clear(self, state: State, first: int, count: int) -> State:
        """Make room for new planes.

        Args:
            state: is used up.
            first: place in the ring of the first plane that is done.
            count: how many are done.
        """
        return self.compiled_clear(state, np.int32(first), np.int32(count))

    def _finished(
        self, program: jax.stages.Compiled, state: State, plane: int, norms: Norms
    ) -> Array:
        arrays = [] if self._head is None else self._head.arrays
        return program(state[0], arrays, np.int32(plane), *norms)

    # ------------------------------------------------------------------ compiled

    @cached_property
    def compiled_start(self) -> jax.stages.Compiled:
        """The program of `start`."""
        zeros = jax.jit(lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._state),
                        out_shardings=self._place)  # fmt: skip
        return zeros.lower().compile()

    @cached_property
    def compiled_add(self) -> jax.stages.Compiled:
        """The program of `add`; the network is in it."""
        n, like = self.batch, self._like
        windows = jax.ShapeDtypeStruct(self._shape, np.float32, sharding=self._split)
        inputs = (windows, like((n, 3), bool), like((n, 2), np.int32), like((n,), bool))
        lowered = jax.jit(self._add, donate_argnums=0, out_shardings=self._place).lower(
            self._state, self._network.arrays, *inputs, like((), np.int32), self._told
        )
        return lowered.compile()

    @cached_property
    def compiled_clear(self) -> jax.stages.Compiled:
        """The program of `clear`."""
        index = self._like((), np.int32)
        clear = jax.jit(_clear, donate_argnums=0, out_shardings=self._place)
        return clear.lower(self._state, index, index).compile()

    @cached_property
    def compiled_labels(self) -> jax.stages.Compiled:
        """The program of `labels`."""
        return self._compiled_finish(lambda logits: jnp.argmax(logits, -1).astype(jnp.uint8))

    @cached_property
    def compiled_logits(self) -> jax.stages.Compiled:
        """The program of `logits`."""
        return self._compiled_finish(lambda logits: logits)

    def _compiled_finish(self, reduce: Callable[[Array], Array]) -> jax.stages.Compiled:
        like = self._like
        arrays = [] if self._head is None else self._head.arrays
        norms = [like((self.tile[0],)), like((self.tile[1],)), like(())]
        # Nothing is written to the accumulator here: then XLA makes no copy of it.
        lowered = jax.jit(partial(self._finish, reduce), out_shardings=self._place).lower(
            self._state[0], arrays, like((), np.int32), *norms
        )
        return lowered.compile()

    @property
    def _state(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        shape = (*self.tile, self._shape[3], self._network.channels)
        return self._like(shape), self._like((), bool)

    def _like(self, shape: Sequence[int], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=self._place)

    # ------------------------------------------------------------------ traced

    def _add(self, state, arrays, windows, flips, at, valid, ring, told) -> State:
        total, bad = state
        out = self._network.call(arrays, windows, told).astype(jnp.float32)
        for axis in self._mirror:
            out = jnp.where(_column(flips[:, axis]), jnp.flip(out, axis + 1), out)
        valid = _column(valid)
        bad |= jnp.any(~jnp.isfinite(out) & valid)
        for axis, weight in enumerate(self._weights, start=1):
            out *= weight.reshape([-1 if a == axis else 1 for a in range(5)])
        # What fills up the batch may be NaN (0 / 0 in a norm), which no factor of 0 takes away.
        out = jnp.where(valid, out, jnp.float32(0))
        for one, place in zip(out, at, strict=True):
            part = jnp.roll(one, ring, axis=2)
            corner = (place[0], place[1], jnp.int32(0), jnp.int32(0))
            here = jax.lax.dynamic_slice(total, corner, part.shape)
            total = jax.lax.dynamic_update_slice(total, here + part, corner)
        return total, bad

    # One plane a call: logits of many classes are never there for more.
    def _finish(self, reduce, total, arrays, plane, x, y, z) -> Array:
        out = jax.lax.dynamic_index_in_dim(total, plane, 2, keepdims=False)
        out /= (x[:, None] * y[None, :] * z)[:, :, None]
        if self._head is not None:
            out = self._head.call(arrays, out[None, :, :, None])[0, :, :, 0].astype(jnp.float32)
        return reduce(out)


def _clear(state: State, first: Array, count: Array) -> State:
    total, bad = state
    planes = total.shape[2]
    done = (jnp.arange(planes, dtype=jnp.int32) - first) % planes < count
    return jnp.where(done[None, None, :, None], jnp.float32(0), total), bad


def _column(flags: Bool[Array, " b"]) -> Bool[Array, "b 1 1 1 1"]:
    return flags[:, None, None, None, None]
