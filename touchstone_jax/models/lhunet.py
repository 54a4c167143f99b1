"""LHU-Net: a light hybrid U-Net (Sadegheih et al. 2024), as trained on AbdomenAtlas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import BatchNorm, Conv, Triple, triple
from touchstone_jax.layers.resize import block_maxima
from touchstone_jax.layers.transposed import TransposedConv
from touchstone_jax.models.hybrid import Hybrid, ResidualBlock
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import UShape, check, per_stage


class Stem(nnx.Module):
    """Convolution of 1, PReLU, BatchNorm: (b, x, y, z, i) to (b, x, y, z, width)."""

    def __init__(self, inputs: int, width: int, how: dict[str, Any]) -> None:
        self.conv, self.prelu = Conv(inputs, width, 1, **how), PReLU()
        self.norm = BatchNorm(width, how["rngs"])

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        return self.norm(self.prelu(self.conv(x)))


class PReLU(nnx.Module):
    """Leaky ReLU whose negative slope is learned (He et al. 2015)."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.full(1, 0.25))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        return jnp.where(x >= 0, x, x * self.weight[...].astype(x.dtype).reshape(1, 1, 1, 1, 1))


class Down(nnx.Module):
    """Residual block and maxima over 2³ voxels; with ``hybrid``, then attention and a block.

    (b, x, y, z, i) to (b, x / 2, y / 2, z / 2, o).
    """

    def __init__(
        self, inputs: int, outputs: int, hybrid: Hybrid | None, how: dict[str, Any]
    ) -> None:
        self.down, self.vit = ResidualBlock(inputs, outputs, 3, how), hybrid
        self.conv = None if hybrid is None else ResidualBlock(outputs, outputs, 3, how)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        x = block_maxima(self.down(x))
        if self.vit is None or self.conv is None:
            return x
        return self.conv(x + self.vit(x))


class Decode(nnx.Module):
    """Residual block of what was merged; with ``hybrid``, attention is added."""

    def __init__(
        self, inputs: int, outputs: int, hybrid: Hybrid | None, how: dict[str, Any]
    ) -> None:
        self.conv, self.vit = ResidualBlock(inputs, outputs, 3, how), hybrid

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        x = self.conv(x)
        return x if self.vit is None else x + self.vit(x)


class LHUNet(UShape):
    """Two convolutional and three hybrid levels, and the image itself once more at the end.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, for one patch only. In
    training (``model.train()``) a tuple of one: the original has no deep supervision.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input, multiples of 32.
        cnn_widths: channels of the two convolutional levels, even.
        hybrid_widths: channels of the three hybrid levels.
        heads: of the attention of each hybrid level down; reversed on the way up.
        projections: mixtures of tokens of the first two hybrid levels; the third attends over
            channels.
        dtype: "float32" or "bfloat16", of convolutions; norms, attention and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "lhunet"
    torch_ignored = r"num_batches_tracked$|\.attn\.F\."
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("init.0.weight", 1),
        "num_classes": ("out.1.conv.conv.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = 96,
        cnn_widths: Sequence[int] = (12, 16),
        hybrid_widths: Sequence[int] = (32, 64, 128),
        heads: Sequence[int] = (8, 8, 16),
        projections: Sequence[int] = (64, 32),
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("lhunet", dtype)
        cnn = per_stage("lhunet", "cnn_widths", cnn_widths, 2)
        hybrid = per_stage("lhunet", "hybrid_widths", hybrid_widths, 3)
        heads = per_stage("lhunet", "heads", heads, 3)
        projections = (*per_stage("lhunet", "projections", projections, 2), 0)
        self.patch = triple(patch, "lhunet: patch")
        _check(self.patch, cnn[0], hybrid, heads)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        widths = (cnn[0] // 2, *cnn, *hybrid)

        def attention(level: int, heads: int, projection: int) -> Hybrid:
            shape = tuple(p // 2**level for p in self.patch)
            return Hybrid(shape, widths[level], heads, projection, how)

        encoder: list[nnx.Module] = [Stem(in_channels, widths[0], how)]
        for i in range(1, 6):
            vit = attention(i, heads[i - 3], projections[i - 3]) if i > 2 else None
            encoder.append(Down(widths[i - 1], widths[i], vit, how))
        ups, decoder = [], []
        for i in reversed(range(5)):
            kernel = 7 if i == 0 else 5
            ups.append(TransposedConv(widths[i + 1], widths[i], kernel, bias=False, **how))
            vit = attention(i, heads[i - 2], projections[i - 2]) if i > 1 else None
            decoder.append(Decode(2 * widths[i], widths[i], vit, how))
        strides = [(1, 1, 1), *[(2, 2, 2)] * 5]
        super().__init__(
            encoder=encoder,
            ups=ups,
            decoder=decoder,
            heads=[],
            strides=strides,
            remat=remat,
        )
        self.out_skip = ResidualBlock(in_channels, widths[0], 5, how)
        self.out = ResidualBlock(2 * widths[0], widths[0], 5, how)
        self.head = Conv(widths[0], num_classes, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"]]:
        """See the class.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"lhunet: volume {x.shape[1:4]}; expected the patch {self.patch}")
        image = x
        x, skips = self.down(x)
        for up, stage in zip(self.ups, self.decoder, strict=True):
            x, skip = self._run(up, x), skips.pop()
            x = self._run(stage, jnp.concatenate([x, skip.astype(x.dtype)], axis=-1))
        x = jnp.concatenate([x, self._run(self.out_skip, image)], axis=-1)
        x = self._run(self.out, x)
        if self.deterministic:
            return x if self.headless else self.score(x)
        return (self.score(x),)

    def score(self, features: Float[Array, "b x y z f"]) -> Float[Array, "b x y z k"]:
        """Logits from what the ``headless`` network gives."""
        return self.head(features)

    def torch_name(self, path: str) -> str:
        """Name in LHU-Net's state dict of the module at our slash ``path``."""
        names = [
            ("^encoder/0/conv", "init/0"),
            ("^encoder/0/prelu", "init/1"),
            ("^encoder/0/norm", "init/2"),
            ("^out/", "out/0/"),
            ("^head$", "out/1/conv/conv"),
            (r"/lka/(conv0|conv_spatial|conv1|deform_conv)", r"/lka/spatial_gating_unit/\1"),
            ("/vit/conv1$", "/vit/conv1/1"),
        ]
        for i in (1, 2):
            names.append((f"^encoder/{i}/down", f"cnn_encoder/encoder_blocks/{i - 1}/0"))
            names.append((f"^ups/{i + 2}", f"cnn_decoder/ups/{i - 1}/conv"))
            names.append((f"^decoder/{i + 2}/conv", f"cnn_decoder/convs/{i - 1}"))
        for i in range(3):
            names.append((f"^encoder/{i + 3}/down", f"hyb_encoder/downs/{i}/0"))
            names.append((f"^encoder/{i + 3}/vit", f"hyb_encoder/vits/{i}/0"))
            names.append((f"^encoder/{i + 3}/conv", f"hyb_encoder/convs/{i}"))
            names.append((f"^ups/{i}", f"hyb_decoder/ups/{i}/conv"))
            names.append((f"^decoder/{i}/conv", f"hyb_decoder/convs_o/{i}"))
            names.append((f"^decoder/{i}/vit", f"hyb_decoder/vits/{i}/0"))
        # Convolutions of these blocks are wrapped once more; those of attention are not.
        in_block = (
            r"((?:out_skip|out/0|convs(?:_o)?/\d|downs/\d/0|blocks/\d/0|vits/\d/0/conv3)/conv\d)$"
        )
        found = renamed(path, names[:7]).replace(".", "/")
        return renamed(found, [*names[7:], (in_block, r"\1/conv")])


def _check(patch: Triple, first: int, hybrid: Sequence[int], heads: Sequence[int]) -> None:
    if any(p % 32 for p in patch):
        raise ValueError(f"lhunet: patch={patch}; expected multiples of 32")
    if first % 2:
        raise ValueError(f"lhunet: cnn_widths start with {first}; expected an even number")
    for i, (width, count) in enumerate(zip(hybrid, heads, strict=True)):
        if width % count:
            raise ValueError(f"lhunet: heads[{i}]={count} does not divide {width} channels")
