"""UniSeg: a U-Net told its task by a learned prompt (Ye et al. 2023), on the first nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from touchstone_jax.layers import SLOPE, Conv, ConvNormAct, InstanceNorm, Triple, UpConv, triple
from touchstone_jax.models.unet import WIDTHS, renamed, units
from touchstone_jax.models.ushape import UShape, check, stages

KERNELS = ((1, 3, 3), *[(3, 3, 3)] * 5)
STRIDES = ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4)


class Stem(nnx.Module):
    """Convolution by the image's number of channels, then one norm and leaky ReLU.

    (b, x, y, z, i) to (b, x, y, z, width), for each i of ``inputs``.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, kernel: Triple, how: dict[str, Any]
    ) -> None:
        self.convs = nnx.Dict({f"conv_{i}": Conv(i, width, kernel, **how) for i in inputs})
        self.norm = InstanceNorm(width)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        made = self.convs[f"conv_{x.shape[-1]}"](x)
        return jax.nn.leaky_relu(self.norm(made), SLOPE)


class UniSeg(UShape):
    """The first nnU-Net's U-Net whose bottleneck gets a channel that says which task it is.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`. The prompt fixes the
    patch: other sides are refused, unless ``tasks`` is 0, which is the network without prompt that
    the authors fine-tune.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image; one of ``stems``, where they are given.
        widths: channels of the stages, the finest first; at least two.
        patch: voxels (x, y, z) of the input.
        kernels: one size, or a size or triple a stage.
        strides: a stride or triple a stage, by which it first shrinks.
        tasks: number of tasks that the prompt tells apart; 0 for no prompt.
        task: the one that is meant where the call names none, 0..tasks - 1.
        stems: numbers of channels for which the network has a first convolution; None for
            ``in_channels`` alone.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "uniseg"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {"num_classes": ("seg_outputs.0.weight", 0)}

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = WIDTHS,
        patch: int | Sequence[int] = (64, 192, 192),
        kernels: int | Sequence[int | Sequence[int]] = KERNELS,
        strides: Sequence[int | Sequence[int]] | None = STRIDES,
        tasks: int = 9,
        task: int = 0,
        stems: Sequence[int] | None = (1, 2, 4),
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        kernels, strides = stages("uniseg", widths, kernels, strides)
        stems = (in_channels,) if stems is None else tuple(stems)
        _check(dtype, in_channels, stems, tasks, task)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        encoder = [
            nnx.Sequential(
                Stem(stems, widths[0], kernels[0], how),
                ConvNormAct(widths[0], widths[0], kernels[0], **how),
            )
        ]
        for i in range(1, len(widths)):
            encoder.append(units(widths[i - 1], widths[i], kernels[i], strides[i], 2, how))
        way_up = way_up_of(num_classes, widths, kernels, strides, int(tasks > 0), how)
        super().__init__(encoder=encoder, strides=strides, remat=remat, **way_up)
        self.tasks, self.task, self.patch = tasks, task, triple(patch, "uniseg: patch")
        if tasks:
            grid = [p // d for p, d in zip(self.patch, self.divisor, strict=True)]
            normal = jax.random.normal(rngs.params(), (1, tasks, *grid), jnp.float32)
            self.intermedia_prompt = nnx.Param(normal)
            both, narrow = widths[-1] + tasks, (widths[-1] + tasks) // 4
            self.fusion = nnx.Sequential(
                ConvNormAct(both, narrow, **how),
                ConvNormAct(narrow, narrow, **how),
                ConvNormAct(narrow, tasks, **how),
            )

    def __call__(
        self, x: Float[Array, "b x y z i"], prompts: Mapping[str, Int[Array, " b"]] | None = None
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b a b_ c k"], ...]:
        """See the class; prompts["task"] is the task of each sample, in place of the network's.

        Raises:
            ValueError: sides other than the patch.
        """
        if self.tasks and x.shape[1:4] != self.patch:
            raise ValueError(f"uniseg: volume {x.shape[1:4]}; expected the patch {self.patch}")
        deepest, skips = self.down(x)
        if self.tasks:
            task = None if prompts is None else prompts["task"]
            deepest = jnp.concatenate([deepest, self._told(deepest, task)], axis=-1)
        return self.up(deepest, skips)

    @property
    def prompts(self) -> dict[str, int]:
        """Kinds of prompts -> how many legal values there are."""
        return {"task": self.tasks} if self.tasks else {}

    def _told(self, deepest: Array, task: Array | None) -> Float[Array, "b a b_ c 1"]:
        """The channel of the fused prompt that belongs to the task."""
        prompt = jnp.moveaxis(self.intermedia_prompt[...], 1, -1).astype(deepest.dtype)
        prompt = jnp.broadcast_to(prompt, (*deepest.shape[:-1], self.tasks))
        fused = self._run(self.fusion, jnp.concatenate([deepest, prompt], axis=-1))
        if task is None:
            return fused[..., self.task : self.task + 1]
        return jnp.take_along_axis(fused, task.reshape(-1, 1, 1, 1, 1), axis=-1)

    def torch_name(self, path: str) -> str:
        """Name in UniSeg's state dict of the module at our slash ``path``."""
        deepest = len(self.encoder) - 1
        return renamed(
            path,
            (
                # The last stage and those of the way up are lists of stacks of one.
                (
                    rf"^encoder/{deepest}/layers/(\d+)",
                    rf"conv_blocks_context/{deepest}/\1/blocks/0",
                ),
                (r"^encoder/(\d+)/layers/", r"conv_blocks_context/\1/blocks/"),
                (r"^decoder/(\d+)/layers/(\d+)", r"conv_blocks_localization/\1/\2/blocks/0"),
                ("^fusion/layers/", "fusion_layer/blocks/"),
                ("^ups/", "tu/"),
                ("^heads/", "seg_outputs/"),
                ("/convs/conv_", "/conv_"),
                ("/norm$", "/instnorm"),
            ),
        )


def way_up_of(
    num_classes: int,
    widths: Sequence[int],
    kernels: Sequence[Triple],
    strides: Sequence[Triple],
    extra: int,
    how: dict[str, Any],
) -> dict[str, list[nnx.Module]]:
    """The first nnU-Net's transposed convolutions, decoder stages and heads, without biases.

    The deepest stage has ``extra`` channels more than its width.
    """
    made: dict[str, list[nnx.Module]] = {"ups": [], "decoder": [], "heads": []}
    for level in reversed(range(len(widths) - 1)):
        width, below = widths[level], widths[level + 1]
        below += extra if level == len(widths) - 2 else 0
        plain = {"bias": False, "rngs": how["rngs"]}
        made["ups"].append(UpConv(below, width, strides[level + 1], dtype=how["dtype"], **plain))
        # The first nnU-Net takes the kernel of the level below.
        made["decoder"].append(units(2 * width, width, kernels[level + 1], 1, 2, how))
        made["heads"].append(Conv(width, num_classes, 1, dtype=jnp.float32, **plain))
    return made


def _check(dtype: str, in_channels: int, stems: tuple[int, ...], tasks: int, task: int) -> None:
    check("uniseg", dtype)
    if in_channels not in stems:
        raise ValueError(f"uniseg: in_channels={in_channels}; stems={stems} have no such one")
    if type(tasks) is not int or tasks < 0:
        raise ValueError(f"uniseg: tasks={tasks!r}; expected an integer from 0")
    if not 0 <= task < max(tasks, 1):
        raise ValueError(f"uniseg: task={task!r}; expected 0..{max(tasks, 1) - 1}")
