"""Whole volumes from a network of windows: sliding window, Gaussian weights, running argmax.

Logits are only kept where windows still come: windows go through the volume plane by plane along
z (the long axis of a CT), and an accumulator one window deep holds the weighted sums. Planes that
no later window touches become labels at once and leave it, so memory does not grow with the
length of the volume times its classes. The accumulator is a ring along z: nothing is moved.

Its cross-section is fixed when the programs are compiled, by a number of bytes; larger volumes are
done in columns, whose seams are computed twice. So the network is compiled once, for volumes of
any shape, and many classes do not need more memory.

The weighted sum of windows commutes with a last layer that is linear in each voxel. Given
``features`` and such a ``head`` instead of logits, the features are summed, and the head is applied
to finished planes: memory then depends on the features alone, whatever the number of classes, and
the head works once a voxel instead of eight times (at an overlap of a half).

Sums are float32. Order of windows and sums is fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, Float, Float32, Float64, UInt8

from touchstone_jax.infer.accumulate import Programs, State, hoisted
from touchstone_jax.infer.windows import (
    Column,
    columns,
    gaussian,
    summed_weights,
    tile_size,
    window_starts,
)

Box = tuple[slice, slice, slice]
Block = tuple[tuple[slice, slice, int], np.ndarray]
Finish = Callable[..., Array]
Sums = Sequence[Float64[np.ndarray, " n"]]
Told = Callable[[Sequence[int], Sequence[bool]], Any]
"""(first voxel (x, y, z) in the image, axes mirrored) of a window to a pytree of NumPy arrays."""


class SlidingWindow:
    """A network made ready for volumes of any shape; the network is compiled once.

    Attributes:
        window: voxels (x, y, z).
        num_classes: channels of the logits.
        tile: voxels (x, y) of the accumulator.
        programs: what is compiled; each at its first use.
    """

    def __init__(
        self,
        network: Callable[..., Float[Array, "b x y z k"]],
        window: Sequence[int],
        *,
        head: Callable[[Float[Array, "b x y z f"]], Float[Array, "b x y z k"]] | None = None,
        overlap: float = 0.5,
        mirror: Sequence[int] = (),
        batch: int = 1,
        cross_section: Sequence[int] | None = None,
        accumulator_mib: float = 1024,
        pad_value: float = 0.0,
        told: Told | None = None,
        space: int = 1,
    ) -> None:
        """Trace the network; it will run on the first devices of this process.

        Args:
            network: float32 (batch, *window, 1) to logits, or to the features that ``head`` takes;
                arrays that it holds become arguments of the program, not constants.
            window: voxels (x, y, z).
            head: features to logits, voxel by voxel and linear (a 1x1x1 convolution with bias).
            overlap: share of a window that its neighbour covers at least, 0 <= overlap < 1.
            mirror: axes (of 0, 1, 2) to mirror along; logits are the mean over all combinations.
            batch: windows a call.
            cross_section: largest voxels (x, y) expected; None for four windows. Larger volumes
                are right, too, but seams are computed twice.
            accumulator_mib: the accumulator's size in MiB is at most this, unless two windows
                along x and y need more.
            pad_value: what surrounds a volume smaller than the window.
            told: arrays like those that the network takes as a second argument, (batch, …), and
                that come with each volume, such as prompts; None for a network of one.
            space: devices of this process over which each window is split along x, so that one
                that is too large for a device fits; they exchange borders, and the accumulator is
                on each.

        Raises:
            ValueError: an illegal argument, more than 256 classes, a network whose result has
                another shape than its input, or a head that is not linear voxel by voxel.
        """
        self.window = tuple(int(w) for w in window)
        check_options(
            self.window,
            overlap=overlap,
            mirror=mirror,
            batch=batch,
            accumulator_mib=accumulator_mib,
            cross_section=cross_section,
            space=space,
        )
        self._overlap, self._pad_value, self._takes_told = overlap, pad_value, told is not None
        self._flips = [
            tuple(axis in chosen for axis in range(3))
            for n in range(len(mirror) + 1)
            for chosen in itertools.combinations(sorted(mirror), n)
        ]
        place, split = _places(space, self.window)
        shape = (batch, *self.window, 1)
        said = None if told is None else _stacked([told((0, 0, 0), (False,) * 3)] * batch)
        net = hoisted(network, shape, "network", place, said)
        cross = cross_section or [4 * w for w in self.window[:2]]
        room = int(accumulator_mib * 2**20)
        self.tile = tile_size(cross, self.window, net.channels, room)
        top = (
            None if head is None else hoisted(head, (1, *self.tile, 1, net.channels), "head", place)
        )
        if head is not None:
            _check_linear(head, net.channels)
        self.num_classes = (top or net).channels
        if self.num_classes > 256:
            raise ValueError(f"the network has {self.num_classes} classes; at most 256 fit a label")
        self.programs = Programs(
            net,
            top,
            tile=self.tile,
            shape=shape,
            weights=[gaussian(w) for w in self.window],
            mirror=mirror,
            place=place,
            split=split,
            told=said,
        )

    def labels(
        self, image: Float32[np.ndarray, "x y z"], *, case: str = "case", told: Told | None = None
    ) -> UInt8[np.ndarray, "x y z"]:
        """The class with the largest logit at each voxel (of equals the lowest), uint8 (x, y, z).

        Args:
            image: as the network takes it (`touchstone_jax.prepare.prepare_image`), any shape.
            case: id for messages.
            told: what the network is told of each window of this volume.

        Raises:
            ValueError: not 3-D or not finite, or logits that are not finite.
        """
        padded, box = self._padded(image, case)
        found = np.zeros(padded.shape, np.uint8, order="F")
        told = self._moved(told, box)
        for at, block in self._blocks(padded, case, self.programs.labels, told):
            found[at] = block
        return found[box]

    def logits(
        self,
        image: Float32[np.ndarray, "x y z"],
        *,
        case: str = "case",
        told: Told | None = None,
        channel: int | None = None,
    ) -> Float32[np.ndarray, "x y z *k"]:
        """The weighted mean of the logits of all windows, float32 (x, y, z, classes).

        For ensembles and tests: it holds classes times volume in the host's memory. With a
        ``channel`` the logits (x, y, z) of that class alone.

        Raises:
            ValueError: as `labels`.
        """
        padded, box = self._padded(image, case)
        kept = (self.num_classes,) if channel is None else ()
        found, finish = np.zeros((*padded.shape, *kept), np.float32), self.programs.logits
        if channel is not None:
            finish = _one_of(finish, channel)
        told = self._moved(told, box)
        for at, block in self._blocks(padded, case, finish, told):
            found[at] = block
        return found[box]

    def count(self, shape: Sequence[int]) -> int:
        """Windows (seams twice, and mirrored ones) that a volume of this shape takes."""
        cut = [self._columns(n, axis) for axis, n in enumerate(self._at_least(shape)[:2])]
        ways = [sum(len(column.starts) for column in axis) for axis in cut]
        return ways[0] * ways[1] * len(self._starts(self._at_least(shape)[2], 2)) * len(self._flips)

    def _at_least(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(n, w) for n, w in zip(shape, self.window, strict=True))

    def _starts(self, size: int, axis: int) -> tuple[int, ...]:
        return window_starts(size, self.window[axis], self._overlap)

    def _columns(self, size: int, axis: int) -> list[Column]:
        return columns(self._starts(size, axis), self.window[axis], size, self.tile[axis])

    def _padded(self, image: np.ndarray, case: str) -> tuple[np.ndarray, Box]:
        """The image with at least the window's size, and where in it the image is."""
        image = checked_image(image, case)
        short = [m - n for m, n in zip(self._at_least(image.shape), image.shape, strict=True)]
        x, y, z = (slice(s // 2, s // 2 + n) for s, n in zip(short, image.shape, strict=True))
        if any(short):
            margins = [(s // 2, s - s // 2) for s in short]
            image = np.pad(image, margins, constant_values=self._pad_value)
        return image, (x, y, z)

    def _moved(self, told: Told | None, box: Box) -> Told | None:
        """``told`` of windows in a padded image, inside of which ``box`` is the image."""
        if (told is None) == self._takes_told:
            have = "is" if self._takes_told else "is not"
            raise ValueError(f"told={told}: the network {have} made for being told of each window")
        first = [side.start for side in box]
        return told and (lambda corner, flips: told(np.subtract(corner, first).tolist(), flips))

    def _blocks(
        self, image: np.ndarray, case: str, finish: Finish, told: Told | None
    ) -> Iterator[Block]:
        """Finished blocks and where they are; together they are the volume."""
        sums = [
            summed_weights(self._starts(n, axis), self.window[axis], n)
            for axis, n in enumerate(image.shape)
        ]
        sums[2] *= len(self._flips)
        cut = [self._columns(n, axis) for axis, n in enumerate(image.shape[:2])]
        for x, y in itertools.product(*cut):
            yield from self._column(image, case, finish, (x, y), sums, told)

    def _column(
        self,
        image: np.ndarray,
        case: str,
        finish: Finish,
        xy: tuple[Column, Column],
        sums: Sums,
        told: Told | None,
    ) -> Iterator[Block]:
        """The blocks of one column, from below to above."""
        ring, state = 0, self.programs.start()
        x, y = (slice(c.low, c.high) for c in xy)
        inside = tuple(slice(c.low - c.starts[0], c.high - c.starts[0]) for c in xy)
        norms = [_from(s, c.starts[0], n) for s, c, n in zip(sums, xy, self.tile, strict=False)]
        starts = self._starts(image.shape[2], 2)
        for start, end in zip(starts, (*starts[1:], image.shape[2]), strict=True):
            state = self._add(state, image, xy, start, ring, told)
            if bool(state[1]):
                raise ValueError(
                    f"{case}: the network's output has NaN or infinite values in planes {start} "
                    f"to {start + self.window[2] - 1}; expected finite logits (a damaged "
                    "checkpoint, or an overflow of half precision)"
                )
            # Fetched when all are under way: the device need not wait for each.
            done = [
                finish(state, (ring + k) % self.window[2], (*norms, np.float32(sums[2][start + k])))
                for k in range(end - start)
            ]
            for k, found in enumerate(done):
                yield (x, y, start + k), np.asarray(found)[inside]
            state = self.programs.clear(state, ring, end - start)
            ring = (ring + end - start) % self.window[2]

    def _add(
        self,
        state: State,
        image: np.ndarray,
        xy: tuple[Column, Column],
        z: int,
        ring: int,
        told: Told | None,
    ) -> State:
        """Add all windows of a column that begin in plane ``z``, a batch at a time."""
        origin = [c.starts[0] for c in xy]
        windows = list(itertools.product(xy[0].starts, xy[1].starts, self._flips))
        for first in range(0, len(windows), self.programs.batch):
            some = windows[first : first + self.programs.batch]
            cut = np.stack([self._window(image, (x, y, z), flips) for x, y, flips in some])
            at = np.array([(x - origin[0], y - origin[1]) for x, y, _ in some])
            said = told and _stacked([told((x, y, z), flips) for x, y, flips in some])
            flips = np.array([flips for *_, flips in some])
            state = self.programs.add(state, cut, flips, at, ring, said)
        return state

    def _window(
        self, image: np.ndarray, corner: Sequence[int], flips: Sequence[bool]
    ) -> Float32[np.ndarray, "x y z 1"]:
        box = tuple(slice(c, c + w) for c, w in zip(corner, self.window, strict=True))
        turn = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        return image[box][turn][..., None]


def checked_image(image: np.ndarray, case: str) -> Float32[np.ndarray, "x y z"]:
    """The image (x, y, z) as float32.

    Raises:
        ValueError: not 3-D, empty or not finite; the message begins with the case's id.
    """
    if image.ndim != 3 or not image.size:
        raise ValueError(f"{case}: image has shape {image.shape}; expected voxels (x, y, z)")
    image = np.asarray(image, np.float32)
    if bad := image.size - int(np.isfinite(image).sum()):
        raise ValueError(f"{case}: image has {bad} NaN or infinite of {image.size} voxels")
    return image


def _one_of(finish: Finish, channel: int) -> Finish:
    """``finish`` of one class; the others' logits stay on the device."""
    return lambda *inputs: _picked(finish(*inputs), np.int32(channel))


@jax.jit
def _picked(logits: Float32[Array, "x y k"], channel: Array) -> Float32[Array, "x y"]:
    return jax.lax.dynamic_index_in_dim(logits, channel, 2, keepdims=False)


def _stacked(told: Sequence[Any]) -> Any:
    """Arrays (b, …) from those of b windows."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *told)


def _from(sums: np.ndarray, first: int, size: int) -> Float32[np.ndarray, " size"]:
    """``size`` values from ``first`` on; 1 behind the end, where nothing is read."""
    part = sums[first : first + size]
    return np.pad(part, (0, size - len(part)), constant_values=1).astype(np.float32)


def check_options(
    window: Sequence[int],
    *,
    overlap: float,
    mirror: Sequence[int],
    batch: int,
    accumulator_mib: float,
    cross_section: Sequence[int] | None = None,
    space: int = 1,
) -> None:
    """Refuse arguments of `SlidingWindow` that cannot be.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    for name, value, legal, expected in (
        ("window", tuple(window), len(window) == 3 and min(window) > 0, "three sizes above 0"),
        ("overlap", overlap, 0 <= overlap < 1, "0 or more and below 1"),
        ("mirror", tuple(mirror), set(mirror) <= {0, 1, 2} and len(set(mirror)) == len(mirror),
         "axes of 0, 1 and 2, each once"),
        ("batch", batch, batch >= 1, "at least 1"),
        ("space", space, space >= 1, "at least 1"),
        ("accumulator_mib", accumulator_mib, accumulator_mib > 0, "more than 0"),
        ("cross_section", cross_section, cross_section is None
         or (len(cross_section) == 2 and min(cross_section) > 0), "two sizes above 0"),
    ):  # fmt: skip
        if not legal:
            raise ValueError(f"{name}={value!r}; expected {expected}")


def _places(space: int, window: Sequence[int]) -> tuple[Sharding, Sharding]:
    """Where arrays are whole, and how windows (batch, x, y, z, 1) are split along x."""
    devices = jax.local_devices()
    if space > len(devices) or window[0] % space:
        raise ValueError(
            f"space={space}; expected at most the {len(devices)} devices of this process, and a "
            f"divisor of the window's {window[0]} voxels along x"
        )
    if space == 1:
        one = SingleDeviceSharding(devices[0])
        return one, one
    mesh = jax.make_mesh((space,), ("space",), axis_types=(AxisType.Auto,), devices=devices[:space])
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "space"))


def _check_linear(head: Callable[[Array], Array], channels: int) -> None:
    """Refuse a head that is not affine, or not voxel by voxel.

    Neither would commute with the mean over windows.
    """
    u, v = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 4, channels)).astype(np.float32)
    part = (slice(None), *[slice(1, 3)] * 3)
    at_u, at_v, at_both, at_part = (
        np.asarray(head(jnp.asarray(x)), np.float32) for x in (u, v, 3 * u - 2 * v, u[part])
    )
    # Half precision is off by a few parts in a hundred; a softmax by all of it.
    allowed = 0.05 * max(np.abs(at_u).max(), np.abs(at_v).max())
    for kind, off in (
        ("linear", 3 * at_u - 2 * at_v - at_both),
        ("the same for a voxel whatever is beside it", at_u[part] - at_part),
    ):
        if not (wrong := np.abs(off).max()) <= allowed:
            raise ValueError(
                f"head is not {kind} (off by {wrong:.3g}); expected a 1x1x1 convolution with bias"
            )
