"""MedFormer's blocks: voxels attend to a small semantic map and the map to them (Gao et al. 2022).

Convolutions come after norm and ReLU and have no bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Conv, Triple, standardise
from touchstone_jax.layers.attention import TransformerBlock, attend
from touchstone_jax.layers.depthwise import DepthwiseConv


class PreConv(nnx.Module):
    """Instance norm without parameters, ReLU (unless ``act`` is False), ``conv``."""

    def __init__(self, conv: nnx.Module, *, act: bool = True) -> None:
        self.conv, self.act = conv, act

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        x = standardise(x, 1e-4)
        return self.conv(jax.nn.relu(x) if self.act else x)


class Residual(nnx.Module):
    """Two `PreConv` of 3 and the input, which goes through one where i is not o."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.conv1 = PreConv(Conv(inputs, outputs, bias=False, **how))
        self.conv2 = PreConv(Conv(outputs, outputs, bias=False, **how))
        widens = inputs != outputs
        self.shortcut = PreConv(Conv(inputs, outputs, bias=False, **how)) if widens else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        return self.conv2(self.conv1(x)) + (x if self.shortcut is None else self.shortcut(x))


class Separable(nnx.Module):
    """Depthwise convolution of 3, then one of 1: (b, x, y, z, i) to (b, x, y, z, o)."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.depthwise = _depthwise(inputs, how)
        self.pointwise = Conv(inputs, outputs, 1, bias=False, **how)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        return self.pointwise(self.depthwise(x))


class Stem(nnx.Module):
    """A convolution and a residual block: (b, x, y, z, i) to (b, x, y, z, width)."""

    def __init__(self, inputs: int, width: int, how: dict[str, Any]) -> None:
        self.conv1 = Conv(inputs, width, bias=False, **how)
        self.conv2 = Residual(width, width, how)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        return self.conv2(self.conv1(x))


class Merging(nnx.Module):
    """Blocks of 2³ voxels side by side, norm, `Separable`: sides are halved."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.reduction = Separable(8 * inputs, outputs, how)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        corners = itertools.product((0, 1), repeat=3)
        parts = [x[:, i::2, j::2, k::2] for i, j, k in corners]
        return self.reduction(standardise(jnp.concatenate(parts, -1)))


class MapOf(nnx.Module):
    """Each code of a semantic map: the mean of features under a softmax over the voxels.

    (b, x, y, z, c) to (b, *codes, c).
    """

    def __init__(self, channels: int, codes: Triple, how: dict[str, Any]) -> None:
        self.codes = codes
        self.base_proj = Conv(channels, channels, bias=False, **how)
        self.semantic_proj = Conv(channels, math.prod(codes), bias=False, **how)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b i j k c"]:
        """See the class."""
        features, scores = self.base_proj(x), self.semantic_proj(x).astype(jnp.float32)
        share = jax.nn.softmax(scores.reshape(len(x), -1, scores.shape[-1]), axis=1)
        flat = features.reshape(len(x), -1, features.shape[-1])
        codes = jnp.einsum("bnc,bnk->bkc", flat, share.astype(flat.dtype))
        return codes.reshape(len(x), *self.codes, -1)


class BothWays(nnx.Module):
    """Voxels attend to codes and codes to voxels, by one score: sections 3.2 and 3.3.

    (b, x, y, z, i) and (b, *codes, c) to (b, x, y, z, o) and (b, *codes, o). Heads are the fast
    index of the channels. The scores are computed once each way, so that no (voxels, codes) matrix
    need be stored where `touchstone_jax.layers.attention.attend` has a flash kernel.

    Args:
        inputs: channels i.
        channels: channels o of the result, a multiple of ``heads``, and of the map.
        heads: parts of the channels that attend apart.
        map_out: whether the map is updated too; what nobody reads is not computed.
        how: type, lowering and rngs of convolutions.
    """

    def __init__(
        self, inputs: int, channels: int, heads: int, map_out: bool, how: dict[str, Any]
    ) -> None:
        self.heads = heads
        self.feat_qv = Separable(inputs, 2 * channels, how)
        self.map_qv = Conv(channels, 2 * channels, 1, bias=False, **how)
        self.feat_out = Separable(channels, channels, how)
        self.map_out = Conv(channels, channels, 1, bias=False, **how) if map_out else None

    def __call__(
        self, x: Float[Array, "b x y z i"], codes: Float[Array, "b i_ j k c"]
    ) -> tuple[Float[Array, "b x y z o"], Float[Array, "b i_ j k c"] | None]:
        """See the class."""
        query, value = self._split(self.feat_qv(x))
        code_query, code_value = self._split(self.map_qv(codes))
        made = self._joined(attend(query, code_query, code_value), x.shape[:4])
        if self.map_out is None:
            return self.feat_out(made), None
        code = self._joined(attend(code_query, query, value), codes.shape[:4])
        return self.feat_out(made), self.map_out(code)

    def _split(self, x: Array) -> list[Float[Array, "b n h d"]]:
        parts = jnp.split(x.reshape(len(x), -1, x.shape[-1]), 2, axis=-1)
        return [p.reshape(*p.shape[:2], -1, self.heads).swapaxes(-1, -2) for p in parts]

    def _joined(self, x: Float[Array, "b n h d"], shape: Sequence[int]) -> Array:
        return x.swapaxes(-1, -2).reshape(*shape, -1)


class MBConv(nnx.Module):
    """Widen, depthwise convolution, squeeze and excitation, narrow, plus the input.

    (b, x, y, z, c) to the same shape (Sandler et al. 2018; Hu et al. 2018).
    """

    def __init__(self, channels: int, expansion: int, how: dict[str, Any]) -> None:
        wide = expansion * channels
        self.expand_proj = PreConv(Conv(channels, wide, 1, bias=False, **how))
        self.depthwise = PreConv(_depthwise(wide, how))
        self.squeeze = Conv(wide, wide // 4, 1, **how)
        self.excite = Conv(wide // 4, wide, 1, **how)
        self.pointwise = PreConv(Conv(wide, channels, 1, bias=False, **how), act=False)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        made = self.depthwise(self.expand_proj(x))
        mean = made.mean((1, 2, 3), keepdims=True, dtype=jnp.float32)
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(mean))))
        return x + self.pointwise(made * gate)


class AttentionBlock(nnx.Module):
    """`BothWays` and `MBConv` with what goes around them; arguments of `BothWays`."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        heads: int,
        map_out: bool,
        expansion: int,
        how: dict[str, Any],
    ) -> None:
        self.attn = BothWays(inputs, channels, heads, map_out, how)
        widens = inputs != channels
        self.shortcut = PreConv(Conv(inputs, channels, 1, bias=False, **how)) if widens else None
        self.feedforward = MBConv(channels, expansion, how)

    def __call__(
        self, x: Float[Array, "b x y z i"], codes: Float[Array, "b i_ j k c"]
    ) -> tuple[Float[Array, "b x y z o"], Float[Array, "b i_ j k c"]]:
        """See the class."""
        made, code = self.attn(standardise(x), standardise(codes))
        made = made + (x if self.shortcut is None else self.shortcut(x))
        return self.feedforward(made), codes if code is None else codes + code


class Fusion(nnx.Module):
    """A transformer over the codes of all maps; each map keeps its shape."""

    def __init__(
        self, widths: Sequence[int], channels: int, heads: int, depth: int, how: dict[str, Any]
    ) -> None:
        plain = {"bias": False, **how}
        self.in_proj = nnx.List([Conv(width, channels, 1, **plain) for width in widths])
        self.out_proj = nnx.List([Conv(channels, width, 1, **plain) for width in widths])
        block = {"qkv_bias": False, "dtype": how["dtype"], "rngs": how["rngs"]}
        self.layers = nnx.List(
            [TransformerBlock(channels, heads, channels, **block) for _ in range(depth)]
        )

    def __call__(self, maps: Sequence[Float[Array, "b i j k _"]]) -> list[Array]:
        """See the class."""
        shape = (*maps[0].shape[:4], -1)
        parts = [proj(code) for proj, code in zip(self.in_proj, maps, strict=True)]
        tokens = jnp.concatenate([p.reshape(len(p), -1, p.shape[-1]) for p in parts], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        parts = jnp.split(tokens, len(maps), axis=1)
        return [proj(p.reshape(shape)) for proj, p in zip(self.out_proj, parts, strict=True)]


def _depthwise(channels: int, how: dict[str, Any]) -> DepthwiseConv:
    lowering = {"direct": "grouped"}.get(how["lowering"], "auto")
    return DepthwiseConv(channels, bias=False, **{**how, "lowering": lowering})
