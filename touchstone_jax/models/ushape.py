"""What the U-shaped networks share: a way down that leaves skips, and a way up that takes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Triple, triple

DTYPES = ("float32", "bfloat16")


class UShape(nnx.Module):
    """Encoder stages, then for each but the last: enlarge, merge with its output, decode, score.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32; each of x, y and z a
    multiple of `divisor`. In training (``deterministic=False``, e.g. by ``model.train()``) a tuple
    of the logits of every scale comes back, the finest first, for deep supervision. Else, where
    ``headless`` is set (e.g. by ``model.eval(headless=True)``), what `score` makes the logits of.

    Args:
        encoder: stages, the finest first.
        ups: modules that enlarge, the deepest first; one fewer than the stages.
        decoder: stages after each merge.
        heads: to the logits of each decoder stage; one more is that of the encoder's last stage,
            fewer are those of the last decoder stages, e.g. one alone without deep supervision.
        strides: by how much each encoder stage shrinks.
        remat: whether blocks are computed again for their gradients instead of being stored.

    Attributes:
        label: name in messages.
        activation: of `touchstone_jax.losses.ACTIVATIONS`. With "sigmoid" the background's logit is
            0, so that the largest logit is that of the likeliest organ, or the background's where
            no organ has a probability above a half.
        scale_weights: of the training's scales in the loss; None for nnU-Net's.
        headless: see above; None where logits do not follow linearly from features, so that a
            sliding window must sum logits.
        adds: whether skips are added; else they are concatenated, after what comes from below.
        torch_ignored: regular expression over keys of the original's state dict that hold nothing
            of their own (copies, counters).
        torch_sizes: argument of the network -> (key, axis) of the array that tells its value.
    """

    label: ClassVar[str]
    activation: ClassVar[str] = "softmax"
    scale_weights: ClassVar[tuple[float, ...] | None] = None
    adds: ClassVar[bool] = False
    torch_ignored: ClassVar[str] = r"num_batches_tracked$"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {}

    def __init__(
        self,
        *,
        encoder: Sequence[nnx.Module],
        ups: Sequence[nnx.Module],
        decoder: Sequence[nnx.Module],
        heads: Sequence[nnx.Module],
        strides: Sequence[Triple],
        remat: bool = False,
    ) -> None:
        self.encoder, self.ups = nnx.List(encoder), nnx.List(ups)
        self.decoder, self.heads = nnx.List(decoder), nnx.List(heads)
        self.strides, self.remat = tuple(strides), remat
        self.deterministic = True
        self.headless: bool | None = False

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b a b_ c k"], ...]:
        """See the class.

        Raises:
            ValueError: other axes, or a side that is no multiple of `divisor`.
        """
        return self.up(*self.down(x))

    def down(self, x: Float[Array, "b x y z i"]) -> tuple[Array, list[Array]]:
        """The encoder's last output and the outputs of the stages before, the finest first."""
        self.refuse_sides(x)
        skips = []
        for stage in self.encoder:
            x = self._run(stage, x)
            skips.append(x)
        return x, skips[:-1]

    def refuse_sides(self, x: Float[Array, "b x y z i"]) -> None:
        """Nothing, for a volume that the network takes.

        Raises:
            ValueError: other axes, or a side that is no multiple of `divisor`.
        """
        if x.ndim != 5:
            raise ValueError(f"{self.label}: input {x.shape}; expected (batch, x, y, z, channels)")
        if any(n % d for n, d in zip(x.shape[1:4], self.divisor, strict=True)):
            raise ValueError(
                f"{self.label}: volume {x.shape[1:4]} must be a multiple of {self.divisor}"
            )

    def up(self, x: Array, skips: Sequence[Array]) -> Array | tuple[Array, ...]:
        """Logits (b, x, y, z, k), in training of all scales, from what `down` gave."""
        made = self.decode(x, skips)
        if self.deterministic:
            return made[-1] if self.headless else self.score(made[-1])
        heads, more = self.heads[: len(made)], self.heads[len(made) :]
        logits = [head(x) for head in more]
        scored = made[len(made) - len(heads) :]
        logits += [head(level) for head, level in zip(heads, scored, strict=True)]
        return tuple(reversed(logits))

    def decode(self, x: Array, skips: Sequence[Array]) -> list[Array]:
        """Features (b, x, y, z, f) of the decoder's stages, the coarsest first, from `down`'s."""
        made = []
        for up, stage, skip in zip(self.ups, self.decoder, reversed(skips), strict=True):
            x = self._run(up, x)
            x = x + skip if self.adds else jnp.concatenate([x, skip], axis=-1)
            x = self._run(stage, x)
            made.append(x)
        return made

    def score(self, features: Float[Array, "b x y z f"]) -> Float[Array, "b x y z k"]:
        """Logits of the finest scale from what the ``headless`` network gives; linear."""
        return self.heads[min(len(self.decoder), len(self.heads)) - 1](features)

    def set_view(self, deterministic: bool | None = None, headless: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic
        if headless is not None:
            self.headless = headless

    @property
    def divisor(self) -> Triple:
        """Of what the sides (x, y, z) of a volume must be multiples."""
        x, y, z = (math.prod(s[axis] for s in self.strides) for axis in range(3))
        return x, y, z

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that several arrays of the original's state dict tell together."""
        del arrays
        return {}

    def torch_name(self, path: str) -> str:
        """Name in the original's state dict of the module at our slash ``path``."""
        raise NotImplementedError(f"{self.label}: no original weights are known")

    def _run(self, module: nnx.Module, *inputs: Any) -> Any:
        if not self.remat or self.deterministic:
            return module(*inputs)
        if not isinstance(module, nnx.Sequential):
            return recomputed(module, *inputs)
        (x,) = inputs
        for layer in module.layers:
            x = recomputed(cast(nnx.Module, layer), x)
        return x


def recomputed(module: nnx.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, of which only these are kept for the gradients (Chen et al. 2016)."""
    graphdef, *states = nnx.split(module, nnx.Param, ...)
    params, rest = states

    @jax.checkpoint
    def run(params: object, rest: object, *inputs: Any) -> tuple[Array, object]:
        copy = nnx.merge(graphdef, params, rest)
        made = copy(*inputs)
        return made, nnx.to_pure_dict(nnx.state(copy, nnx.Not(nnx.Param)))

    made, after = run(nnx.to_pure_dict(params), nnx.to_pure_dict(rest), *inputs)
    nnx.replace_by_pure_dict(rest, after)
    nnx.update(module, rest)
    return made


def background_added(organs: Float[Array, "b x y z o"]) -> Float[Array, "b x y z k"]:
    """Logits of all classes from those of the organs: the background's is 0."""
    return jnp.pad(organs, [(0, 0)] * 4 + [(1, 0)])


def stages(
    label: str,
    widths: Sequence[int],
    kernels: int | Sequence[int | Sequence[int]],
    strides: Sequence[int | Sequence[int]] | None,
) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """Kernels and strides (x, y, z) of each stage; strides None for 1, 2, 2, …

    Raises:
        ValueError: fewer than two widths, other counts, even kernels.
    """
    count = len(widths)
    if count < 2 or not all(type(w) is int and w >= 1 for w in widths):
        raise ValueError(f"{label}: widths={widths!r}; expected at least two integers from 1")
    kernels = (kernels,) * count if isinstance(kernels, int) else tuple(kernels)
    strides = (1, *[2] * (count - 1)) if strides is None else tuple(strides)
    for name, given in (("kernels", kernels), ("strides", strides)):
        if len(given) != count:
            raise ValueError(f"{label}: {name}={given!r}; expected one for each of {count} widths")
    kernels = tuple(triple(k, f"{label}: kernels") for k in kernels)
    if any(k % 2 == 0 for k in itertools.chain(*kernels)):
        raise ValueError(f"{label}: kernels={kernels!r}; expected odd sizes")
    return kernels, tuple(triple(s, f"{label}: strides") for s in strides)


def check(label: str, dtype: str, **counts: int) -> None:
    """Refuse another type than `DTYPES` and counts that are no integers from 1.

    Raises:
        ValueError: either.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{label}: dtype={dtype!r}; legal: {', '.join(DTYPES)}")
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{label}: {name}={count!r}; expected an integer from 1")


def per_stage(label: str, name: str, given: Sequence[int], count: int) -> tuple[int, ...]:
    """One integer from 1 for each of ``count`` stages.

    Raises:
        ValueError: anything else.
    """
    found = tuple(given) if isinstance(given, Sequence) else (given,)
    if len(found) != count or not all(type(n) is int and n >= 1 for n in found):
        raise ValueError(f"{label}: {name}={found!r}; expected {count} integers from 1")
    return found
