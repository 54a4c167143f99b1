"""U-Net & CLIP: the U-Net of Models Genesis under a CLIP-driven head (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import ConvNormAct, InstanceNorm, UpConv
from touchstone_jax.layers.resize import Maxima
from touchstone_jax.models.clip_head import CLIP_NAMES, ClipHead, told
from touchstone_jax.models.text import UNIVERSAL, Source, Wording, read_embeddings
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import UShape, check, per_stage

LEVELS = (64, 128, 256, 512)


class JointNorm(InstanceNorm):
    """Batch norm that never reads running statistics, as Models Genesis' never does.

    (b, x, y, z, c) to the same shape. In training the statistics are those of the batch. In
    evaluation they are each sample's own, which is the same for one sample at a time, so that a
    prediction does not depend on what it is computed with.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.deterministic = True

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        if self.deterministic:
            return super().__call__(x)
        b, n, *rest = x.shape
        return super().__call__(x.reshape(1, b * n, *rest)).reshape(x.shape)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic


class UNetClip(UShape):
    """Four levels of two convolutions, batch norms and ReLUs; masks by `ClipHead`.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, of organs that do not
    exclude each other; the background's are 0. In training (``model.train()``) a tuple of one: the
    original has no deep supervision.

    Args:
        num_classes: organs and the background.
        in_channels: channels of the image.
        widths: channels of the four levels, even.
        embeddings: vectors of the organs' names, for `touchstone_jax.models.text.read_embeddings`;
            None for its stand-in, with which this is not the published network.
        organs: names, in the order of the labels; None for the first of ``embeddings``.
        groups: of `ClipHead`.
        dtype: "float32" or "bfloat16", of convolutions; norms and head stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "unet_clip"
    activation = "sigmoid"
    wording: ClassVar[Wording] = UNIVERSAL
    torch_ignored = r"num_batches_tracked$|running_(mean|var)$"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("backbone.down_tr64.ops.0.conv1.weight", 1)
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = LEVELS,
        embeddings: Source = None,
        organs: Sequence[str] | None = None,
        groups: Sequence[int] = (16, 16),
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("unet_clip", dtype)
        widths = per_stage("unet_clip", "widths", widths, len(LEVELS))
        if any(width % 2 for width in widths):
            raise ValueError(f"unet_clip: widths={widths}; expected even numbers")
        vectors = read_embeddings(embeddings, num_classes - 1, organs)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        encoder, ups, decoder = [], [], []
        for i, (inputs, width) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            pool = [Maxima()] if i else []
            encoder.append(nnx.Sequential(*pool, *_pair(inputs, width // 2, width, how)))
        for i in reversed(range(len(widths) - 1)):
            below, width = widths[i + 1], widths[i]
            ups.append(UpConv(below, below, dtype=how["dtype"], rngs=rngs))
            decoder.append(nnx.Sequential(*_pair(below + width, width, width, how)))
        strides = [(1, 1, 1), *[(2, 2, 2)] * (len(widths) - 1)]
        super().__init__(
            encoder=encoder,
            ups=ups,
            decoder=decoder,
            heads=[],
            strides=strides,
            remat=remat,
        )
        self.headless = None
        self.head = ClipHead(widths[-1], widths[0], vectors, groups=groups, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"]]:
        """See the class.

        Raises:
            ValueError: a side that is no multiple of `divisor`.
        """
        deepest, skips = self.down(x)
        logits = self.head(deepest, self.decode(deepest, skips)[-1])
        return logits if self.deterministic else (logits,)

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """num_classes of the Universal Model's state dict, and a place for its embeddings."""
        return told(arrays)

    def torch_name(self, path: str) -> str:
        """Name in the Universal Model's state dict of the module at our slash ``path``."""
        names = [*CLIP_NAMES]
        for i, level in enumerate(LEVELS):
            # From the second level on there is the pool before the two units.
            for unit in range(2):
                ours = f"^encoder/{i}/layers/{unit + (i > 0)}/"
                names.append((ours, f"backbone/down_tr{level}/ops/{unit}/"))
        for i, level in enumerate(reversed(LEVELS[:-1])):
            names.append((f"^ups/{i}$", f"backbone/up_tr{level}/up_conv"))
            names.append((f"^decoder/{i}/layers/", f"backbone/up_tr{level}/ops/"))
        return renamed(path, [*names, ("/conv$", "/conv1"), ("/norm$", "/bn1")])


def _pair(inputs: int, middle: int, outputs: int, how: dict[str, Any]) -> list[ConvNormAct]:
    sides = ((inputs, middle), (middle, outputs))
    return [ConvNormAct(i, o, norm=JointNorm(o), slope=0.0, **how) for i, o in sides]
