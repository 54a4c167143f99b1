"""UCTransNet: a U-Net whose skips pass a channel transformer and gates (Wang et al. 2022).

The authors' network is two-dimensional; this is the same in three dimensions, as the benchmark has
it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import BatchNorm, Conv, ConvNormAct, triple
from touchstone_jax.layers.resize import Maxima, nearest
from touchstone_jax.models.channel_transformer import ChannelTransformer
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import UShape, background_added, check

RATIOS = (1, 2, 4, 8, 8)
"""Widths of the levels as multiples of the first."""
PATCHES = (16, 8, 4, 2)
"""Sides of the patches of the four skips."""


class Gate(nnx.Module):
    """A skip's channels times what its mean and that from below say, then ReLU ("CCA").

    (b, x, y, z, c) twice to the same shape.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.mlp_x = nnx.Linear(channels, channels, rngs=rngs)
        self.mlp_g = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(
        self, skip: Float[Array, "b x y z c"], below: Float[Array, "b x y z c"]
    ) -> Float[Array, "b x y z c"]:
        """See the class."""
        means = (x.mean((1, 2, 3), dtype=jnp.float32) for x in (skip, below))
        told = (self.mlp_x(next(means)) + self.mlp_g(next(means))) / 2
        gate = jax.nn.sigmoid(told)[:, None, None, None].astype(skip.dtype)
        return jax.nn.relu(skip * gate)


class UCTransNet(UShape):
    """Five levels of convolutions, batch norms and ReLUs, and `ChannelTransformer` on the skips.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, for one patch only, of
    organs that do not exclude each other; the background's are 0. In training (``model.train()``) a
    tuple of one: the original has no deep supervision.

    Args:
        num_classes: organs and the background.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input, multiples of 16.
        width: channels of the first level; the others have 2, 4, 8 and 8 times as many.
        heads: of the channel transformer; each sees all channels.
        layers: of the channel transformer.
        dropout: rate on its tokens and attention in training.
        dtype: "float32" or "bfloat16", of convolutions and linear layers; norms, softmax and logits
            stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "uctransnet"
    activation = "sigmoid"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {"in_channels": ("inc.conv.weight", 1)}

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = 128,
        width: int = 48,
        heads: int = 4,
        layers: int = 4,
        dropout: float = 0.1,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("uctransnet", dtype, width=width, heads=heads, layers=layers)
        self.patch = triple(patch, "uctransnet: patch")
        if any(p % PATCHES[0] for p in self.patch):
            raise ValueError(f"uctransnet: patch={self.patch}; expected multiples of {PATCHES[0]}")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        widths = [width * ratio for ratio in RATIOS]
        encoder: list[nnx.Module] = [_unit(in_channels, width, how)]
        for inputs, outputs in itertools.pairwise(widths):
            units = _unit(inputs, outputs, how), _unit(outputs, outputs, how)
            encoder.append(nnx.Sequential(Maxima(), *units))
        decoder, gates = [], []
        for level in reversed(range(len(PATCHES))):
            # What comes from below has as many channels as the skip.
            outputs = widths[max(level - 1, 0)]
            units = _unit(2 * widths[level], outputs, how), _unit(outputs, outputs, how)
            decoder.append(nnx.Sequential(*units))
            gates.append(Gate(widths[level], rngs))
        head = Conv(widths[0], num_classes - 1, 1, dtype=jnp.float32, rngs=rngs)
        strides = [(1, 1, 1), *[(2, 2, 2)] * len(PATCHES)]
        super().__init__(
            encoder=encoder,
            ups=[],
            decoder=decoder,
            heads=[head],
            strides=strides,
            remat=remat,
        )
        self.gates = nnx.List(gates)
        grid = triple([p // PATCHES[0] for p in self.patch], "uctransnet: grid")
        self.mtc = ChannelTransformer(widths[:-1], grid, PATCHES, heads, layers, dropout, how)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"]]:
        """See the class.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"uctransnet: volume {x.shape[1:4]}; expected the patch {self.patch}")
        x, skips = self.down(x)
        skips = self._transformed(skips)
        for gate, stage in zip(self.gates, self.decoder, strict=True):
            x = nearest(x, (2, 2, 2))
            skip = gate(skips.pop(), x)
            x = self._run(stage, jnp.concatenate([skip, x], axis=-1))
        if self.deterministic:
            return x if self.headless else self.score(x)
        return (self.score(x),)

    def score(self, features: Float[Array, "b x y z f"]) -> Float[Array, "b x y z k"]:
        """Logits from what the ``headless`` network gives; linear."""
        return background_added(super().score(features))

    def _transformed(self, skips: Sequence[Array]) -> list[Array]:
        tokens = [
            self._run(embed, skip) for embed, skip in zip(self.mtc.embeddings, skips, strict=True)
        ]
        for layer in self.mtc.layers:
            tokens = self._run(layer, *tokens)
        parts = zip(skips, self.mtc.reconstructions, self.mtc.norms, tokens, strict=True)
        return [skip + back(norm(x)).astype(skip.dtype) for skip, back, norm, x in parts]

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes: the original has none for the background."""
        key = "outc.weight"
        return {"num_classes": np.shape(arrays[key])[0] + 1} if key in arrays else {}

    def torch_name(self, path: str) -> str:
        """Name in UCTransNet's state dict of the module at our slash ``path``."""
        names = [("^encoder/0/", "inc/"), ("^heads/0$", "outc"), ("^mtc/layers/", "mtc/layer/")]
        for i in range(4):
            names += [
                # The pool comes before the two units.
                (f"^encoder/{i + 1}/layers/1/", f"down{i + 1}/nConvs/0/"),
                (f"^encoder/{i + 1}/layers/2/", f"down{i + 1}/nConvs/1/"),
                (f"^decoder/{i}/layers/", f"up{4 - i}/nConvs/"),
                (f"^gates/{i}/(mlp_.)$", rf"up{4 - i}/coatt/\1/1"),
                (f"^mtc/embeddings/{i}/", f"mtc/embeddings_{i + 1}/"),
                (f"^mtc/embeddings/{i}$", f"mtc/embeddings_{i + 1}"),
                (f"^mtc/reconstructions/{i}/unit/", f"mtc/reconstruct_{i + 1}/"),
                (f"^mtc/norms/{i}$", f"mtc/encoder/encoder_norm{i + 1}"),
                (f"/(attn|ffn)_norms/{i}$", rf"/\1_norm{i + 1}"),
                (f"/queries/{i}/", f"/query{i + 1}/"),
                (f"/out/{i}$", f"/out{i + 1}"),
                (rf"/ffns/{i}/linear(\d)$", rf"/ffn{i + 1}/fc\1"),
            ]
        return renamed(path, [*names, ("^mtc/layer/", "mtc/encoder/layer/")])


def _unit(inputs: int, outputs: int, how: dict[str, Any]) -> ConvNormAct:
    norm = BatchNorm(outputs, how["rngs"])
    return ConvNormAct(inputs, outputs, norm=norm, slope=0.0, **how)
