"""nnU-Net's plain 3-D U-Net (Isensee et al. 2021; ``PlainConvUNet`` of its second version)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Conv, ConvNormAct, Triple, UpConv, triple

WIDTHS = (32, 64, 128, 256, 320, 320)
DTYPES = ("float32", "bfloat16")


class UNet(nnx.Module):
    """Stages of two convolutions with instance norm and leaky ReLU, skips, transposed convolutions.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32; each of x, y and z a
    multiple of `divisor`. In training (``deterministic=False``, e.g. by ``model.train()``) a tuple
    of the logits of every decoder stage comes back, the finest first.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        widths: channels of the stages, the finest first; at least two.
        kernels: one size, or a size or triple a stage.
        strides: a stride or triple a stage, by which it first shrinks; None for 1, 2, 2, …
        convs: convolutions of each encoder stage.
        decoder_convs: convolutions of each decoder stage.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        rngs: initialisation.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = WIDTHS,
        kernels: int | Sequence[int | Sequence[int]] = 3,
        strides: Sequence[int | Sequence[int]] | None = None,
        convs: int = 2,
        decoder_convs: int = 2,
        dtype: str = "float32",
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ) -> None:
        kernels, strides = _stages(widths, kernels, strides)
        _check(dtype, {"convs": convs, "decoder_convs": decoder_convs})
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        self.strides, self.deterministic = strides, True
        inputs = (in_channels, *widths[:-1])
        self.encoder = nnx.List(
            [
                _stage(a, b, kernel, stride, convs, how)
                for a, b, kernel, stride in zip(inputs, widths, kernels, strides, strict=True)
            ]
        )
        ups, decoder, heads = [], [], []
        for level in reversed(range(len(widths) - 1)):
            width, below = widths[level], widths[level + 1]
            ups.append(UpConv(below, width, strides[level + 1], dtype=how["dtype"], rngs=rngs))
            decoder.append(_stage(2 * width, width, kernels[level], 1, decoder_convs, how))
            heads.append(Conv(width, num_classes, 1, dtype=jnp.float32, rngs=rngs))
        self.ups, self.decoder, self.heads = nnx.List(ups), nnx.List(decoder), nnx.List(heads)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b a b_ c k"], ...]:
        """See the class.

        Raises:
            ValueError: a side that is no multiple of `divisor`.
        """
        if any(n % d for n, d in zip(x.shape[1:4], self.divisor, strict=True)):
            raise ValueError(f"unet: volume {x.shape[1:4]} must be a multiple of {self.divisor}")
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        logits = []
        for up, stage, head in zip(self.ups, self.decoder, self.heads, strict=True):
            x = stage(jnp.concatenate([up(x), skips.pop()], axis=-1))
            logits.append(None if self.deterministic and skips else head(x))
        return logits[-1] if self.deterministic else tuple(reversed(logits))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic

    @property
    def divisor(self) -> Triple:
        """Of what the sides (x, y, z) of a volume must be multiples."""
        return tuple(math.prod(s[axis] for s in self.strides) for axis in range(3))


def _stage(
    inputs: int, width: int, kernel: Triple, stride: int | Triple, convs: int, how: dict[str, Any]
) -> nnx.Module:
    units = [ConvNormAct(inputs, width, kernel, stride, **how)]
    units += [ConvNormAct(width, width, kernel, **how) for _ in range(convs - 1)]
    return nnx.Sequential(*units)


def _stages(
    widths: Sequence[int],
    kernels: int | Sequence[int | Sequence[int]],
    strides: Sequence[int | Sequence[int]] | None,
) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    count = len(widths)
    if count < 2 or not all(type(w) is int and w >= 1 for w in widths):
        raise ValueError(f"unet: widths={widths!r}; expected at least two integers from 1")
    kernels = (kernels,) * count if isinstance(kernels, int) else tuple(kernels)
    strides = (1, *[2] * (count - 1)) if strides is None else tuple(strides)
    for name, given in (("kernels", kernels), ("strides", strides)):
        if len(given) != count:
            raise ValueError(f"unet: {name}={given!r}; expected one for each of {count} widths")
    kernels = tuple(triple(k, "unet: kernels") for k in kernels)
    if any(k % 2 == 0 for k in itertools.chain(*kernels)):
        raise ValueError(f"unet: kernels={kernels!r}; expected odd sizes")
    return kernels, tuple(triple(s, "unet: strides") for s in strides)


def _check(dtype: str, counts: dict[str, int]) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"unet: dtype={dtype!r}; legal: {', '.join(DTYPES)}")
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"unet: {name}={count!r}; expected an integer from 1")
