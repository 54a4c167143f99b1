"""The compiled programs of `touchstone_jax.infer`: add windows to an accumulator, finish planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

State = tuple[Float32[Array, "x y w c"], Bool[Array, ""]]
"""The accumulator, its third axis a ring, and whether a value was not finite."""

Norms = tuple[Float32[np.ndarray, " x"], Float32[np.ndarray, " y"], Float32[np.ndarray, " depth"]]
"""Summed weights along each axis; their product is that of a voxel."""


class Hoisted(NamedTuple):
    """A function of one array, and apart from it the arrays that it held.

    Attributes:
        call: (arrays, input) to output.
        arrays: on the device.
        channels: of the output.
    """

    call: Callable[[Any, Array], Array]
    arrays: list[Array]
    channels: int


def hoisted(
    function: Callable[[Array], Array], shape: Sequence[int], name: str, device: jax.Device
) -> Hoisted:
    """Take the arrays out of a function: as constants they would be part of the program.

    Args:
        function: float32 ``shape`` to the same shape but for its last axis.
        shape: of the input.
        name: for messages.
        device: where the arrays go.

    Raises:
        ValueError: a result of another shape.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(
        jax.ShapeDtypeStruct(tuple(shape), np.float32)
    )
    got = getattr(out, "shape", type(out).__name__)
    if not isinstance(got, tuple) or got[:-1] != tuple(shape[:-1]) or len(got) != len(shape):
        raise ValueError(
            f"{name} makes {got} of {tuple(shape)}; expected {(*shape[:-1], 'channels')}"
        )

    def call(arrays: Any, x: Array) -> Array:
        return jax.core.eval_jaxpr(closed.jaxpr, arrays, x)[0]

    return Hoisted(call, jax.device_put(closed.consts, device), got[-1])


class Programs:
    """The programs for one network, one size of windows and one tile; each is compiled once.

    Attributes:
        tile: voxels (x, y) of the accumulator.
        batch: windows a call of `add`.
        depth: planes that `labels` and `logits` finish at most.
    """

    def __init__(
        self,
        network: Hoisted,
        head: Hoisted | None,
        *,
        tile: Sequence[int],
        depth: int,
        shape: Sequence[int],
        weights: Sequence[Float32[np.ndarray, " w"]],
        mirror: Sequence[int],
        device: jax.Device,
    ) -> None:
        """Nothing is compiled yet.

        Args:
            network: (batch, *window, 1) to the channels that are summed.
            head: from summed channels to logits; None if they are the logits.
            tile: voxels (x, y) of the accumulator.
            depth: planes that are finished at most.
            shape: of the network's input.
            weights: of a window along each axis.
            mirror: axes along which windows may come mirrored.
            device: where all is done.
        """
        self.tile, self.batch, self.depth = tuple(tile), shape[0], depth
        self._network, self._head, self._shape = network, head, tuple(shape)
        self._weights, self._mirror, self._device = weights, tuple(mirror), device

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
    ) -> State:
        """Add the network's output on up to ``batch`` windows to the accumulator.

        Args:
            state: is used up.
            windows: as cut out of the image, mirrored where ``flips`` says so.
            flips: axes to turn the output back along.
            at: integers (b, 2), where each window begins in the accumulator.
            ring: place in the ring of the windows' first plane.
        """
        filler = self.batch - len(windows)
        valid = np.arange(self.batch) < len(windows)
        windows, flips, at = (
            np.pad(a, [(0, filler), *[(0, 0)] * (a.ndim - 1)]) for a in (windows, flips, at)
        )
        inputs = (windows, flips, at.astype(np.int32), valid, np.int32(ring))
        return self.compiled_add(state, self._network.arrays, *inputs)

    def labels(
        self, state: State, ring: int, count: int, norms: Norms
    ) -> tuple[State, UInt8[Array, "x y depth"]]:
        """Labels of the first ``count`` planes of ``depth``, which leave the accumulator.

        Args:
            state: is used up.
            ring: place in the ring of the first plane.
            count: at most ``depth``; of the other planes nothing is meant.
            norms: summed weights.
        """
        return self._finished(self.compiled_labels, state, ring, count, norms)

    def logits(
        self, state: State, ring: int, count: int, norms: Norms
    ) -> tuple[State, Float32[Array, "x y depth k"]]:
        """As `labels`, the weighted mean of the logits."""
        return self._finished(self.compiled_logits, state, ring, count, norms)

    def _finished(self, program: Any, state: State, ring: int, count: int, norms: Norms):
        arrays = [] if self._head is None else self._head.arrays
        return program(state, arrays, np.int32(ring), np.int32(count), *norms)

    # ------------------------------------------------------------------ compiled

    @cached_property
    def compiled_start(self) -> jax.stages.Compiled:
        """The program of `start`."""
        place = jax.sharding.SingleDeviceSharding(self._device)
        empty = (self._like(self._accumulator), self._like((), bool))
        zeros = jax.jit(lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty),
                        out_shardings=(place, place))  # fmt: skip
        return zeros.lower().compile()

    @cached_property
    def compiled_add(self) -> jax.stages.Compiled:
        """The program of `add`; the network is in it."""
        n, like = self.batch, self._like
        state = (like(self._accumulator), like((), bool))
        inputs = (like(self._shape), like((n, 3), bool), like((n, 2), np.int32), like((n,), bool))
        lowered = jax.jit(self._add, donate_argnums=0).lower(
            state, self._network.arrays, *inputs, like((), np.int32)
        )
        return lowered.compile()

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
        state = (like(self._accumulator), like((), bool))
        arrays = [] if self._head is None else self._head.arrays
        norms = [like((n,)) for n in (*self.tile, self.depth)]
        index = like((), np.int32)
        lowered = jax.jit(partial(self._finish, reduce), donate_argnums=0).lower(
            state, arrays, index, index, *norms
        )
        return lowered.compile()

    @property
    def _accumulator(self) -> tuple[int, ...]:
        return (*self.tile, self._shape[3], self._network.channels)

    def _like(self, shape: Sequence[int], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        place = jax.sharding.SingleDeviceSharding(self._device)
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=place)

    # ------------------------------------------------------------------ traced

    def _add(self, state, arrays, windows, flips, at, valid, ring) -> State:
        total, bad = state
        out = self._network.call(arrays, windows).astype(jnp.float32)
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

    def _finish(self, reduce, state, arrays, ring, count, x, y, z) -> tuple[State, Array]:
        total, bad = state
        window = total.shape[2]
        across = (x[:, None] * y[None, :])[:, :, None]

        # Plane by plane: logits of many classes are never there for more than one.
        def plane(k: Array) -> Array:
            summed = jax.lax.dynamic_index_in_dim(total, (ring + k) % window, 2, keepdims=False)
            mean = summed / (across * z[k])
            if self._head is None:
                return reduce(mean)
            return reduce(self._head.call(arrays, mean[None, :, :, None])[0, :, :, 0])

        found = jnp.moveaxis(jax.lax.map(plane, jnp.arange(self.depth, dtype=jnp.int32)), 0, 2)
        done = (jnp.arange(window, dtype=jnp.int32) - ring) % window < count
        return (jnp.where(done[None, None, :, None], jnp.float32(0), total), bad), found


def _column(flags: Bool[Array, " b"]) -> Bool[Array, "b 1 1 1 1"]:
    return flags[:, None, None, None, None]
