"""UNETR: a vision transformer whose states become the skips of a U-shape (Hatamizadeh et al. 2022).

Its residual blocks and its way up are those of Swin UNETR and UNesT too (all from MONAI).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import SLOPE, Conv, Triple, UpConv, standardise, triple
from touchstone_jax.models.unet import Renaming, renamed
from touchstone_jax.models.ushape import UShape, check
from touchstone_jax.models.vit import VIT_NAMES, VIT_UNUSED, ViT

TOKEN: Triple = (16, 16, 16)
"""Voxels of a token: one for each of the four times that the way up doubles the sides."""


class Residual(nnx.Module):
    """conv-norm-act-conv-norm plus the input, then act: ``UnetResBlock`` of MONAI.

    (b, x, y, z, i) to (b, x, y, z, o). Norms have no parameters, convolutions no bias. The input
    goes through a convolution of 1 and a norm where i is not o.

    Args:
        inputs: channels i.
        outputs: channels o.
        how: type, lowering and rngs of `Conv`.
    """

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        thin = {**how, "bias": False}
        self.conv1 = Conv(inputs, outputs, 3, **thin)
        self.conv2 = Conv(outputs, outputs, 3, **thin)
        self.conv3 = None if inputs == outputs else Conv(inputs, outputs, 1, **thin)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        made = jax.nn.leaky_relu(standardise(self.conv1(x)), SLOPE)
        made = standardise(self.conv2(made))
        shortcut = x if self.conv3 is None else standardise(self.conv3(x))
        return jax.nn.leaky_relu(made + shortcut.astype(made.dtype), SLOPE)


def monai_way_up(
    num_classes: int, widths: Sequence[int], how: dict[str, Any]
) -> dict[str, list[nnx.Module]]:
    """Transposed convolutions, residual blocks after each merge and one head, for `UShape`.

    Args:
        num_classes: logits.
        widths: channels of the levels, the finest first; the last is what comes from below.
        how: type, lowering and rngs of `Conv`.
    """
    made: dict[str, list[nnx.Module]] = {"ups": [], "decoder": []}
    plain = {"dtype": how["dtype"], "bias": False, "rngs": how["rngs"]}
    for width, below in reversed(list(itertools.pairwise(widths))):
        made["ups"].append(UpConv(below, width, 2, **plain))
        made["decoder"].append(Residual(2 * width, width, how))
    return {**made, "heads": [Conv(widths[0], num_classes, 1, rngs=how["rngs"])]}


def monai_name(path: str, first: int, names: Sequence[Renaming] = ()) -> str:
    """MONAI's name of the module at our slash ``path``.

    Args:
        path: of a network whose way up is `monai_way_up`'s.
        first: number that MONAI gives the deepest stage of the way up.
        names: replacements of the network's own, done first.
    """
    ways: list[Renaming] = []
    for i in range(first):
        ways.append((f"^ups/{i}$", f"decoder{first - i}/transp_conv/conv"))
        ways.append((f"^decoder/{i}/", f"decoder{first - i}/conv_block/"))
    ways += [("^heads/0$", "out/conv/conv"), (r"/(conv[123])$", r"/\1/conv")]
    return renamed(path, (*names, *ways))


class UNETR(UShape):
    """Tokens of 16³ voxels through a transformer, four of its states up to the image's sides.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, for one patch only:
    positions are learned for each token. In training (``model.train()``) a tuple of one: the
    original has no deep supervision.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input, multiples of 16.
        width: channels of the finest level; the others have 2, 4 and 8 times as many.
        hidden: channels of a token.
        mlp: channels inside the transformer's MLPs.
        layers: blocks of the transformer.
        heads: of its attention.
        taps: numbers of the blocks, from 0, whose output becomes a skip: at 1/2, 1/4 and 1/8 of
            the sides.
        embedding: of `touchstone_jax.models.vit.PatchEmbedding`.
        dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and logits
            stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`; blocks of the transformer as well.
        rngs: initialisation.
    """

    label = "unetr"
    torch_ignored = VIT_UNUSED
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("encoder1.layer.conv1.conv.weight", 1),
        "num_classes": ("out.conv.conv.weight", 0),
        "width": ("encoder1.layer.conv1.conv.weight", 0),
        "hidden": ("vit.norm.weight", 0),
        "mlp": ("vit.blocks.0.mlp.linear1.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = 96,
        width: int = 32,
        hidden: int = 768,
        mlp: int = 3072,
        layers: int = 12,
        heads: int = 12,
        taps: Sequence[int] = (3, 6, 9),
        embedding: str = "perceptron",
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("unetr", dtype, width=width, hidden=hidden, mlp=mlp, layers=layers, heads=heads)
        self.patch, self.taps = triple(patch, "unetr: patch"), _check_taps(taps, layers)
        if any(p % t for p, t in zip(self.patch, TOKEN, strict=True)):
            raise ValueError(f"unetr: patch={self.patch}; expected multiples of 16")
        if hidden % heads:
            raise ValueError(f"unetr: heads={heads} does not divide hidden={hidden}")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        widths = [width * ratio for ratio in (1, 2, 4, 8)]
        encoder: list[nnx.Module] = [Residual(in_channels, width, how)]
        encoder += [_enlarge(hidden, w, 3 - i, how) for i, w in enumerate(widths[1:], 1)]
        way_up = monai_way_up(num_classes, [*widths, hidden], how)
        super().__init__(encoder=encoder, strides=[TOKEN], remat=remat, **way_up)
        plain = {"dtype": how["dtype"], "rngs": rngs}
        size = {"width": hidden, "hidden": mlp, "layers": layers, "heads": heads}
        self.vit = ViT(self.patch, TOKEN, in_channels, **size, embedding=embedding, how=plain)

    def down(self, x: Float[Array, "b x y z i"]) -> tuple[Array, list[Array]]:
        """The transformer's last tokens in their places, and the skips, the finest first.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"unetr: volume {x.shape[1:4]}; expected the patch {self.patch}")
        last, kept = self.vit(x, self.taps, self._run)
        states = [x, *(self.vit.volume(tokens) for tokens in kept)]
        skips = [self._run(stage, s) for stage, s in zip(self.encoder, states, strict=True)]
        return self.vit.volume(last), skips

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """How MONAI's state dict stores the patches' weights."""
        matrix = "vit.patch_embedding.patch_embeddings.1.weight" in arrays
        return {"embedding": "perceptron" if matrix else "conv"}

    def torch_name(self, path: str) -> str:
        """Name in MONAI's state dict of the module at our slash ``path``."""
        names = [("^encoder/0/", "encoder1/layer/"), *VIT_NAMES]
        for i in (1, 2, 3):
            names.append((f"^encoder/{i}/layers/0$", f"encoder{i + 1}/transp_conv_init/conv"))
            for step in range(3 - i):
                place = f"encoder{i + 1}/blocks/{step}"
                names.append((f"^encoder/{i}/layers/{2 * step + 1}$", f"{place}/0/conv"))
                names.append((f"^encoder/{i}/layers/{2 * step + 2}/", f"{place}/1/"))
        return monai_name(path, 5, names)


def _enlarge(hidden: int, width: int, more: int, how: dict[str, Any]) -> nnx.Sequential:
    """Doubles the sides once, and then so often ``more``, each time with a residual block."""
    plain = {"dtype": how["dtype"], "bias": False, "rngs": how["rngs"]}
    made: list[nnx.Module] = [UpConv(hidden, width, 2, **plain)]
    for _ in range(more):
        made += [UpConv(width, width, 2, **plain), Residual(width, width, how)]
    return nnx.Sequential(*made)


def _check_taps(taps: Sequence[int], layers: int) -> tuple[int, ...]:
    found = tuple(taps)
    rising = len(found) == 3 and all(type(t) is int for t in found) and found[0] >= 0
    if not rising or not found[0] < found[1] < found[2] < layers:
        raise ValueError(f"unetr: taps={found!r}; expected three rising integers below {layers}")
    return found
