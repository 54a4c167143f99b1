"""TinyViT with adapters: MobileSAM's image encoder (Wu et al. 2022; Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from touchstone_jax.layers.attention import LayerNorm, attend, dense, gelu
from touchstone_jax.layers.slices import FrozenNorm, cut, joined, slice_conv
from touchstone_jax.models.sam import Adapter

STRIDES = (2, 2, 1)
"""Of the mergings between the four stages."""

CLASSES = 1000
"""Of ImageNet."""

Run = Callable[[nnx.Module, Array], Array]


class ConvNorm(nnx.Module):
    """Convolution without bias and batch norm; arguments as for `slice_conv`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        how: dict[str, Any],
        stride: int = 1,
        depthwise: bool = False,
    ) -> None:
        self.c = slice_conv(inputs, outputs, kernel, how, stride=stride, depthwise=depthwise)
        self.bn = FrozenNorm(outputs)

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n a b o"]:
        """See the class."""
        return self.bn(self.c(x))


class Bottleneck(nnx.Module):
    """1x1 convolution, a depthwise one and 1x1, with GELU between (Sandler et al. 2018).

    (n, h, w, i) to (n, h / stride, w / stride, o); with ``residual`` the input is added and GELU
    follows.
    """

    def __init__(
        self,
        inputs: int,
        inside: int,
        outputs: int,
        how: dict[str, Any],
        stride: int = 1,
        residual: bool = False,
    ) -> None:
        self.conv1 = ConvNorm(inputs, inside, 1, how)
        self.conv2 = ConvNorm(inside, inside, 3, how, stride, depthwise=True)
        self.conv3 = ConvNorm(inside, outputs, 1, how)
        self.residual = residual

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n a b o"]:
        """See the class."""
        made = self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))
        return gelu(made + x) if self.residual else made


class WindowAttention(nnx.Module):
    """Norm and attention inside windows, with a learned number for each distance and head.

    (n, v, t, c) to the same shape, t = window².

    Args:
        width: c.
        heads: parts of the channels that attend apart.
        window: side in tokens.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, width: int, heads: int, window: int, how: dict[str, Any]) -> None:
        self.norm = LayerNorm(width, rngs=how["rngs"])
        self.qkv, self.proj = dense(width, 3 * width, **how), dense(width, width, **how)
        self.attention_biases = nnx.Param(jnp.zeros((heads, window**2), jnp.float32))
        self.heads, self.window = heads, window

    def __call__(self, x: Float[Array, "n v t c"]) -> Float[Array, "n v t c"]:
        """See the class."""
        # Queries, keys and values of a head stand side by side, unlike elsewhere.
        parts = self.qkv(self.norm(x)).reshape(*x.shape[:-1], self.heads, 3, -1)
        at = np.stack(np.divmod(np.arange(self.window**2), self.window), -1)
        away = np.abs(at[:, None] - at[None])
        bias = self.attention_biases[...][:, away[..., 0] * self.window + away[..., 1]]
        made = attend(parts[..., 0, :], parts[..., 1, :], parts[..., 2, :], bias)
        return self.proj(made.reshape(x.shape))


class Mlp(nnx.Module):
    """Norm, Linear, GELU, Linear: (*b, c) to the same shape."""

    def __init__(self, width: int, how: dict[str, Any]) -> None:
        self.norm = LayerNorm(width, rngs=how["rngs"])
        self.fc1, self.fc2 = dense(width, 4 * width, **how), dense(4 * width, width, **how)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """See the class."""
        return self.fc2(gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nnx.Module):
    """Window attention, a depthwise convolution and an MLP; an adapter behind and one beside.

    (n, h, w, c) to the same shape. Arguments as for `WindowAttention`.
    """

    def __init__(self, width: int, heads: int, window: int, how: dict[str, Any]) -> None:
        self.attn = WindowAttention(width, heads, window, how)
        self.local_conv = ConvNorm(width, width, 3, how, depthwise=True)
        self.mlp = Mlp(width, how)
        self.Space_Adapter, self.MLP_Adapter = Adapter(width, how), Adapter(width, how)
        self.window = window

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """See the class."""
        seen = joined(self.attn(cut(x, self.window)), self.window, *x.shape[1:3])
        x = self.local_conv(x + seen + self.Space_Adapter(seen))
        return x + self.mlp(x) + self.MLP_Adapter(x) / 2


class Stage(nnx.Module):
    """Blocks and, but for the last stage, a merging."""

    def __init__(self, blocks: Sequence[nnx.Module], downsample: nnx.Module | None) -> None:
        self.blocks, self.downsample = nnx.List(blocks), downsample

    def __call__(self, x: Float[Array, "n h w c"], run: Run) -> Float[Array, "n a b o"]:
        """See the class; ``run`` calls each block."""
        for block in self.blocks:
            x = run(block, x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nnx.Module):
    """(n, h, w, i) to (n, h / 16, w / 16, outputs); h and w multiples of 16.

    Args:
        inputs: channels i.
        widths: channels of the four stages.
        depths: blocks of each; those of the first are convolutions.
        heads: of the attention of each; the first is not read.
        windows: sides of the windows of each; the first is not read.
        outputs: channels that the decoder takes.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self,
        inputs: int,
        *,
        widths: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (2, 4, 5, 10),
        windows: Sequence[int] = (7, 7, 14, 7),
        outputs: int = 256,
        how: dict[str, Any],
    ) -> None:
        first, last = widths[0], widths[-1]
        self.embed1 = ConvNorm(inputs, first // 2, 3, how, stride=2)
        self.embed2 = ConvNorm(first // 2, first, 3, how, stride=2)
        self.layers: nnx.List[Stage] = nnx.List([])
        blocks: Sequence[nnx.Module]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if i:
                blocks = [TinyViTBlock(width, heads[i], windows[i], how) for _ in range(depth)]
            else:
                blocks = [
                    Bottleneck(width, 4 * width, width, how, residual=True) for _ in range(depth)
                ]
            merging = None
            if i < len(widths) - 1:
                merging = Bottleneck(width, widths[i + 1], widths[i + 1], how, stride=STRIDES[i])
            self.layers.append(Stage(blocks, merging))
        self.neck = Neck(last, outputs, how)
        self.norm_head = LayerNorm(last, rngs=how["rngs"])
        self.head = dense(last, CLASSES, rngs=how["rngs"])

    def __call__(
        self, x: Float[Array, "n h w i"], run: Run = lambda module, x: module(x)
    ) -> Float[Array, "n a b o"]:
        """See the class; ``run`` calls each block."""
        return self.neck(self._tokens(x, run))

    def classify(self, x: Float[Array, "n h w i"]) -> Float32[Array, "n 1000"]:
        """Logits of what the picture shows, for which the encoder was made: classes of ImageNet."""
        seen = self._tokens(x, lambda module, x: module(x)).astype(jnp.float32)
        return self.head(self.norm_head(seen.mean((1, 2))))

    def _tokens(self, x: Float[Array, "n h w i"], run: Run) -> Float[Array, "n a b l"]:
        """After the last stage."""
        x = self.embed2(gelu(self.embed1(x)))
        for stage in self.layers:
            x = stage(x, run)
        return x


class Neck(nnx.Module):
    """Convolution of 1, norm, convolution of 3, norm; no biases: (n, h, w, i) to (n, h, w, o)."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.conv1 = slice_conv(inputs, outputs, 1, how)
        self.conv2 = slice_conv(outputs, outputs, 3, how)
        self.norm1 = LayerNorm(outputs, 1e-6, rngs=how["rngs"])
        self.norm2 = LayerNorm(outputs, 1e-6, rngs=how["rngs"])

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        """See the class."""
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


TINY_VIT_NAMES = (
    ("/embed1/", "/patch_embed/seq/0/"),
    ("/embed2/", "/patch_embed/seq/2/"),
)
"""Our paths inside a `TinyViT` -> the original's."""
