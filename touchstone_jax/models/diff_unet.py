"""Diff-UNet: a U-Net that takes the noise from noisy label maps (Xing et al. 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer

from touchstone_jax.layers import Conv, ConvNormAct, Triple, UpConv
from touchstone_jax.layers.resize import block_maxima
from touchstone_jax.losses import IGNORE
from touchstone_jax.models.diffusion import STEPS, ddim, fused, noised
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import background_added, check, per_stage, recomputed

SLOPE = 0.1
WAVES, EMBEDDING = 128, 512
"""Sines and cosines of the time, and numbers that are made of them."""


class TwoConvs(nnx.Module):
    """Two units; with ``timed``, what a Linear makes of the time is added between them.

    (b, x, y, z, i) to (b, x, y, z, o); ``time`` is (b, 512).
    """

    def __init__(self, inputs: int, outputs: int, timed: bool, how: dict[str, Any]) -> None:
        self.conv_0 = ConvNormAct(inputs, outputs, slope=SLOPE, **how)
        self.conv_1 = ConvNormAct(outputs, outputs, slope=SLOPE, **how)
        self.temb_proj = nnx.Linear(EMBEDDING, outputs, rngs=how["rngs"]) if timed else None

    def __call__(
        self, x: Float[Array, "b x y z i"], time: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b x y z o"]:
        """See the class."""
        x = self.conv_0(x)
        if time is not None:
            assert self.temb_proj is not None  # only timed blocks are given a time
            x = x + self.temb_proj(jax.nn.silu(time))[:, None, None, None].astype(x.dtype)
        return self.conv_1(x)


class TimeEmbedding(nnx.Module):
    """Times (b,) to (b, 512): sines and cosines, then Linear, swish, Linear."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.List(
            [nnx.Linear(WAVES, EMBEDDING, rngs=rngs), nnx.Linear(EMBEDDING, EMBEDDING, rngs=rngs)]
        )

    def __call__(self, time: Int[Array, " b"]) -> Float[Array, "b t"]:
        """See the class."""
        half = WAVES // 2
        rates = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-np.log(1e4) / (half - 1)))
        phase = time.astype(jnp.float32)[:, None] * rates[None]
        waves = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        return self.dense[1](jax.nn.silu(self.dense[0](waves)))


class DiffUNet(nnx.Module):
    """An encoder sees the image, a U-Net the image and a noisy label map, and makes it clean.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, sides multiples of 16:
    the mean of the label maps that DDIM draws from noise, `touchstone_jax.models.diffusion.fused`,
    in [-1, 1], and 0 for the background. The noise follows from ``seed`` alone, and is one for all
    samples: where a window stands in a batch makes no difference.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        widths: channels of the five levels, the finest first, and after the last step up.
        steps: of DDIM, 2..1000.
        runs: label maps drawn and averaged; the authors draw 4 for BraTS, 1 for CTs.
        seed: of the noise.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: whether pairs of convolutions are computed again for their gradients.
        rngs: initialisation.

    Raises:
        ValueError: an illegal argument.
    """

    label = "diff_unet"
    activation = "sigmoid"
    divisor: ClassVar[Triple] = (16, 16, 16)
    torch_ignored = r"^$"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("embed_model.conv_0.conv_0.conv.weight", 1)
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 64, 128, 256, 512, 64),
        steps: int = 10,
        runs: int = 1,
        seed: int = 0,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("diff_unet", dtype, runs=runs)
        w = per_stage("diff_unet", "widths", widths, 6)
        _check(w, steps, seed)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        organs, pairs = num_classes - 1, list(itertools.pairwise(w[:5]))
        self.embed_model = nnx.List(
            [TwoConvs(i, o, False, how) for i, o in [(in_channels, w[0]), *pairs]]
        )
        self.down = nnx.List(
            [TwoConvs(i, o, True, how) for i, o in [(in_channels + organs, w[0]), *pairs]]
        )
        self.temb = TimeEmbedding(rngs)
        self.ups: nnx.List[UpConv] = nnx.List([])
        self.up: nnx.List[TwoConvs] = nnx.List([])
        for level in reversed(range(4)):
            inside = w[level + 1] // 2 if level else w[1]
            self.ups.append(UpConv(w[level + 1], inside, 2, dtype=how["dtype"], rngs=rngs))
            made = w[level] if level else w[5]
            self.up.append(TwoConvs(w[level] + inside, made, True, how))
        self.final_conv = Conv(w[5], organs, 1, rngs=rngs)
        self.steps, self.runs, self.seed, self.organs = steps, runs, seed, organs
        self.remat, self.deterministic = remat, True

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z k"]:
        """See the class.

        Raises:
            ValueError: a side that is no multiple of 16.
        """
        levels = self.embed(x)
        shape = (self.runs, 1, *x.shape[1:4], self.organs)
        noise = jax.random.normal(jax.random.key(self.seed), shape, jnp.float32)

        def run(noise: Array) -> Array:
            noise = jnp.broadcast_to(noise, (x.shape[0], *noise.shape[1:]))
            return ddim(lambda noisy, time: self.denoise(x, levels, noisy, time), noise, self.steps)

        return background_added(fused(jax.lax.map(run, noise)))

    def training_loss(
        self,
        x: Float[Array, "b x y z i"],
        labels: Integer[Array, "b x y z"],
        annotated: Bool[Array, "b k"],
        rng: Array,
        loss: Callable[[tuple[Float[Array, "b x y z k"]]], dict[str, Array]],
    ) -> dict[str, Float[Array, ""]]:
        """``loss`` of what is left of a noisy label map, and its squared error in [0, 1].

        Args:
            x: image.
            labels: 0..k - 1 or `touchstone_jax.losses.IGNORE`, which counts as background here.
            annotated: organs that were looked for; only their squared error counts.
            rng: of a time for each sample, and of the noise.
            loss: Dice and binary cross-entropy of logits.
        """
        time_rng, noise_rng = jax.random.split(rng)
        time = jax.random.randint(time_rng, x.shape[:1], 0, STEPS)
        numbers = jnp.arange(1, self.organs + 1, dtype=labels.dtype).reshape(1, 1, 1, 1, -1)
        truth = (labels[..., None] == numbers).astype(jnp.float32)
        noise = jax.random.normal(noise_rng, truth.shape, jnp.float32)
        noisy = noised(2 * truth - 1, time, noise)
        organs = self.denoise(x, self.embed(x), noisy, time)
        terms = loss((background_added(organs),))
        counted = (labels != IGNORE)[..., None] & annotated[:, None, None, None, 1:]
        error = jnp.where(counted, jnp.square(jax.nn.sigmoid(organs) - truth), 0)
        mean = error.sum() / jnp.maximum(counted.sum(dtype=jnp.float32), 1)
        return {**terms, "loss": terms["loss"] + mean, "squared_error": mean}

    def embed(self, x: Float[Array, "b x y z i"]) -> list[Float[Array, "b a b_ c w"]]:
        """What the encoder makes of the image, the finest level first.

        Raises:
            ValueError: a side that is no multiple of 16.
        """
        if any(n % d for n, d in zip(x.shape[1:4], self.divisor, strict=True)):
            raise ValueError(
                f"diff_unet: volume {x.shape[1:4]} must be a multiple of {self.divisor}"
            )
        levels = []
        for level, stage in enumerate(self.embed_model):
            x = self._run(stage, block_maxima(x) if level else x)
            levels.append(x)
        return levels

    def denoise(
        self,
        x: Float[Array, "b x y z i"],
        levels: Sequence[Float[Array, "b a b_ c w"]],
        noisy: Float[Array, "b x y z o"],
        time: Int[Array, " b"],
    ) -> Float[Array, "b x y z o"]:
        """The clean label map, organs only: logits to the loss, values in [-1, 1] to DDIM.

        Args:
            x: image.
            levels: of `embed`.
            noisy: label map at ``time``.
            time: 0..999.
        """
        embedded = self.temb(time)
        made, skips = jnp.concatenate([x.astype(noisy.dtype), noisy], axis=-1), []
        for level, stage in enumerate(self.down):
            made = self._run(stage, block_maxima(made) if level else made, embedded) + levels[level]
            skips.append(made)
        skips.pop()
        for up, stage in zip(self.ups, self.up, strict=True):
            made = jnp.concatenate([skips.pop(), up(made)], axis=-1)
            made = self._run(stage, made, embedded)
        return self.final_conv(made)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes: the original has none for the background."""
        key = "model.final_conv.weight"
        return {"num_classes": np.shape(arrays[key])[0] + 1} if key in arrays else {}

    def torch_name(self, path: str) -> str:
        """Name in Diff-UNet's state dict of the module at our slash ``path``."""
        steps = [(f"^ups/{i}$", f"upcat_{4 - i}/upsample/deconv") for i in range(4)]
        steps += [(f"^up/{i}/", f"upcat_{4 - i}/convs/") for i in range(4)]
        return renamed(
            path,
            (
                *steps,
                (r"(^|embed_model/)(?:down/)?0/", r"\1conv_0/"),
                (r"(^|embed_model/)(?:down/)?([1-4])/", r"\1down_\2/convs/"),
                ("/norm$", "/adn/N"),
                ("^(?!embed_model)", "model/"),
            ),
        )

    def _run(self, stage: TwoConvs, *inputs: Array) -> Array:
        keeps = not self.remat or self.deterministic
        return stage(*inputs) if keeps else recomputed(stage, *inputs)


def _check(widths: Sequence[int], steps: int, seed: int) -> None:
    if any(w % 2 for w in widths[2:5]):
        raise ValueError(f"diff_unet: widths={tuple(widths)}; levels 2 to 4 must be even")
    if type(steps) is not int or not 2 <= steps <= STEPS:
        raise ValueError(f"diff_unet: steps={steps!r}; expected an integer in 2..{STEPS}")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"diff_unet: seed={seed!r}; expected an integer in 0..2**32 - 1")
