"""Transposed convolutions that double every side and whose windows overlap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.blocks import LOWERINGS, add_bias, convolve, he_normal


def double(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "k k k i o"], *, lowering: str = "direct"
) -> Float[Array, "b x2 y2 z2 o"]:
    """Output voxel o is the sum over input voxels i of x[i] kernel[o - 2i + (k - 1) / 2].

    PyTorch's transposed convolution of stride 2, padding (k - 1) / 2 and output padding 1. Outputs
    of each parity are a convolution of their own, with every other tap of the kernel; all eight
    are one convolution to eight times the channels (Shi et al. 2016): nothing is dilated.

    Args:
        x: input.
        kernel: an odd size.
        lowering: of `touchstone_jax.layers.blocks.convolve`.

    Raises:
        ValueError: an even kernel.
    """
    size, channels = kernel.shape[0], kernel.shape[-1]
    if size % 2 == 0:
        raise ValueError(f"kernel {kernel.shape[:3]}: expected odd sizes")
    reach = (size // 2 + 1) // 2
    shifts, parities = np.arange(-reach, reach + 1), np.arange(2)
    # The tap by which input m + shift reaches output 2m + parity; where there is none, zeros.
    tap = parities[None] + size // 2 - 2 * shifts[:, None]
    taps = jnp.asarray(np.where((tap >= 0) & (tap < size), tap, size).reshape(-1))
    for axis in range(3):
        kernel = jnp.take(kernel, taps, axis, mode="fill", fill_value=0)
    width = len(shifts)
    kernel = kernel.reshape(width, 2, width, 2, width, 2, -1, channels)
    kernel = kernel.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(*[width] * 3, -1, 8 * channels)
    made = convolve(x, kernel, lowering=lowering)
    b, *sides, _ = made.shape
    made = made.reshape(b, *sides, 2, 2, 2, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return made.reshape(b, *(2 * n for n in sides), channels)


class TransposedConv(nnx.Module):
    """`double` with a bias: (b, x, y, z, i) to (b, 2x, 2y, 2z, o).

    Args:
        inputs: channels i.
        outputs: channels o.
        kernel: one odd size.
        dtype: type of the computation and the result.
        lowering: of `touchstone_jax.layers.blocks.convolve`; "auto" is "planes" on CPUs.
        bias: whether a bias is added.
        rngs: initialisation (He et al. 2015 with PyTorch's fan-in; bias 0).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        dtype: Any = jnp.float32,
        lowering: str = "auto",
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        if lowering not in LOWERINGS:
            raise ValueError(f"lowering={lowering!r}; legal: {', '.join(LOWERINGS)}")
        self.kernel = he_normal(rngs, (*[kernel] * 3, inputs, outputs), kernel**3 * outputs)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None
        self.dtype, self.lowering = jnp.dtype(dtype), lowering

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        """See the class."""
        lowering = self.lowering
        if lowering == "auto":
            lowering = "planes" if jax.default_backend() == "cpu" else "direct"
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return add_bias(double(x, kernel, lowering=lowering), self.bias)
