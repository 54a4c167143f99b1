"""Heatmap losses of ISNet: background loss, foreground loss, and the tuning of their cuts.

Layout: relevance (b, m, *space, c) with m maps a sample, mask (b, *space, 1 or c) with
1 = foreground. Every function is pure, works in the dtype of the relevance and is finite for
finite relevance: empty mask, full mask and all-zero map included. Non-finite relevance gives a
non-finite loss on purpose (the original hides it by substitution); the launcher stops on it.

Source: Bassi et al. 2024, Nature Communications 15:291 and IEEE Access 12:155151 (LRP-Flex).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.legal import check
from isnet_jax.lrp.maps import AdaptivePoolMap
from isnet_jax.lrp.rules import magnitude

Array = jax.Array

CAP = 1e7
"""The background loss stops growing at log(CAP)."""

NEGLIGIBLE = 1e-10
"""Share of the total weight that ranked pooling may drop to select instead of sort."""


NORMS = ("abs_mean", "mean", "none")
RIGHTS = ("l1", "l2", "hybrid")


def gwrp(values: Array, decay: float) -> Array:
    """Global weighted ranked pooling over the last axis: (..., n) to (...).

    ``sum_i d^i v_(i) / sum_i d^i`` with ``v_(0) >= v_(1) >= ...`` and 0^0 = 1: decay 0 is the
    maximum, 1 the mean (Kolesnikov & Lampert 2016). Weights are rounded to float32, as the
    original does. Ranks whose weights sum to less than `NEGLIGIBLE` of the total are dropped,
    which turns the sort into a top-k.

    Args:
        values: (..., n) float.
        decay: in [0, 1].

    Raises:
        ValueError: decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"GWRP decay must lie in [0, 1], got {decay}")
    if decay == 1:
        return values.mean(-1)
    if decay == 0:
        return values.max(-1)
    n = values.shape[-1]
    powers = np.power(float(decay), np.arange(n)).astype(np.float32).astype(np.float64)
    kept = min(n, math.ceil(math.log(NEGLIGIBLE) / math.log(decay)))
    ranked = jax.lax.top_k(values, kept)[0]
    weights = jnp.asarray(powers[:kept] / powers.sum(), values.dtype)
    # Not a matmul: accelerators would compute that in TF32 or bfloat16.
    return (ranked * weights.reshape((1,) * (ranked.ndim - 1) + (-1,))).sum(-1)


def resize_mask(mask: Array, space: tuple[int, ...]) -> Array:
    """Mask (b, *any, c) at the size ``space``: a cell with any foreground is foreground."""
    if mask.shape[1:-1] == tuple(space):
        return mask
    pooled = AdaptivePoolMap(tuple(space))(mask, jnp.ones((), mask.dtype))
    return (pooled > 0).astype(mask.dtype)


def background_loss(
    relevance: Array,
    mask: Array,
    *,
    decay: float = 0.9,
    scale: float = 1.0,
    norm: str = "abs_mean",
    channel_decay: float = 1.0,
) -> Array:
    """Background loss per sample, (b,) in [0, log 1e7].

    ``A = |R| / foreground mean``, ranked pooling of its background per channel to ``q``, then
    ``mean over maps and channels of log(1 + q / scale)``, capped at log(1e7). The original's
    ``-log(1 - min(q / (q + E), 1 - 1e-7))`` is the same number, quantised in float32.

    Args:
        relevance: (b, m, *space, c).
        mask: (b, *space, 1 or c), 1 = foreground; resized if its space differs; with another
            number of channels its first one counts.
        decay: ranked pooling decay d in [0, 1].
        scale: E > 0.
        norm: "abs_mean" divides by the foreground mean of |R|, "mean" by |signed mean|, "none"
            multiplies by the number of elements instead.
        channel_decay: ranked pooling decay over the channels; 1 is their mean.

    Raises:
        ValueError: unknown norm, a decay outside [0, 1], or shapes that do not fit.
    """
    mask = _fit(mask, relevance)
    axes = tuple(range(2, relevance.ndim))
    size = magnitude(relevance)
    check("norm", norm, NORMS)
    if norm == "none":
        scaled = size * math.prod(relevance.shape[2:])
    else:
        area = jnp.broadcast_to(mask, (mask.shape[0], 1, *relevance.shape[2:])).sum(axes)
        inside = (size if norm == "abs_mean" else relevance) * mask
        level = inside.sum(axes, keepdims=True) / (area.reshape(_ones(area, relevance)) + 1e-10)
        level += 1e-10
        if norm == "mean":  # one of about -1e-10 would now divide by about 0
            level = jnp.where(magnitude(level) < 1e-10, 1e-10, level)
        scaled = magnitude(size / level)
    outside = jnp.moveaxis(scaled * (1 - mask), -1, 2)
    q = gwrp(outside.reshape(*outside.shape[:3], -1), decay)
    each = jnp.minimum(jnp.log1p(q / scale), math.log(CAP))
    return gwrp(each, channel_decay).mean(1)


def foreground_sums(relevance: Array, mask: Array) -> Array:
    """Total |R| inside the mask, (b, m)."""
    mask = _fit(mask, relevance)
    return (magnitude(relevance) * mask).sum(tuple(range(2, relevance.ndim)))


def foreground_loss(
    relevance: Array, mask: Array, low: Array | float, high: Array | float, *, right: str = "hybrid"
) -> Array:
    """Foreground loss per sample, (b,) >= 0: keeps the foreground's |R| between two cuts.

    With F the foreground sum: ``(min(F / C1, 1) - 1)^2`` below the lower cut and, above the upper
    one, "l2": ``((F - C2)+ / C1)^2``; "l1": ``(F - C2)+``; "hybrid": l2 up to C1 + C2, then
    ``F - (C1 + C2) + 1``, so that its slope stays bounded.

    Args:
        relevance: (b, m, *space, c).
        mask: (b, *space, 1 or c).
        low: C1 > 0, scalar or (m,).
        high: C2 > C1, scalar or (m,).
        right: the form above C2.

    Raises:
        ValueError: unknown form.
    """
    check("right form", right, RIGHTS)
    total = foreground_sums(relevance, mask)
    low, high = (_per_map(cut, total) for cut in (low, high))
    below = jnp.square(jnp.minimum(total / low, 1) - 1)
    excess = jnp.maximum(total - high, 0)
    if right == "l1":
        above = excess
    else:
        above = jnp.square(excess / low)
        if right == "hybrid":
            above = jnp.where(total <= low + high, above, total - (low + high) + 1)
    return (below + above).mean(1)


@dataclass(frozen=True)
class HeatmapLoss:
    """Settings of the heatmap loss ``w1 background + w2 foreground``.

    Attributes:
        background: w1 >= 0.
        foreground: w2 >= 0.
        decay: ranked pooling decay d.
        scale: E of the background loss.
        right: form of the foreground loss above the upper cut.
        norm: normalisation of the background loss.
        channel_decay: ranked pooling decay over the channels of a map; 1 is their mean.
    """

    background: float = 1.0
    foreground: float = 1.0
    decay: float = 0.9
    scale: float = 1.0
    right: str = "hybrid"
    norm: str = "abs_mean"
    channel_decay: float = 1.0

    def __post_init__(self) -> None:
        check("norm", self.norm, NORMS)
        check("right form", self.right, RIGHTS)
        for name in ("decay", "channel_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"heatmap loss {name} must lie in [0, 1], got {getattr(self, name)}"
                )
        if not (self.scale > 0 and self.background >= 0 and self.foreground >= 0):
            raise ValueError(
                "heatmap loss needs scale > 0, background >= 0 and foreground >= 0, got "
                f"{self.scale}, {self.background} and {self.foreground}"
            )

    def __call__(
        self, relevance: Array, mask: Array, cuts: Array | tuple[float, float] = (1.0, 25.0)
    ) -> tuple[Array, Array, Array]:
        """Loss, background and foreground term, each (b,), with ``cuts = (C1, C2)``."""
        background = background_loss(
            relevance,
            mask,
            decay=self.decay,
            scale=self.scale,
            norm=self.norm,
            channel_decay=self.channel_decay,
        )
        foreground = foreground_loss(relevance, mask, cuts[0], cuts[1], right=self.right)
        total = self.background * background + self.foreground * foreground
        return total, background, foreground


def total_relevance(relevance: Array) -> Array:
    """Total |R| of the whole image, mean over the maps, (b,): what the cuts are tuned on."""
    return magnitude(relevance).sum(tuple(range(2, relevance.ndim))).mean(1)


def tune_cuts(totals: np.ndarray) -> tuple[float, float]:
    """Cuts (C1, C2) from `total_relevance` of an epoch of a plain classifier.

    ``C1 = max(mu / 5, mu - 3 s)``, ``C2 = min(25 C1, mu + 3 s)`` with the sample deviation s.

    Args:
        totals: (n,) finite, n >= 2, not all zero.

    Raises:
        ValueError: fewer than two values, a non-finite one, or a mean of zero.
    """
    totals = np.asarray(totals, np.float64).ravel()
    if totals.size < 2 or not np.isfinite(totals).all() or totals.mean() <= 0:
        raise ValueError(
            f"tuning the cuts needs at least 2 finite heatmap totals with a positive mean, got "
            f"{totals.size} with mean {totals.mean() if totals.size else 'none'}"
        )
    mean, deviation = float(totals.mean()), float(totals.std(ddof=1))
    low = max(mean / 5, mean - 3 * deviation)
    return low, min(25 * low, mean + 3 * deviation)


def _fit(mask: Array, relevance: Array) -> Array:
    """Mask as (b, 1, *space, 1 or c) in the relevance's dtype."""
    if mask.ndim != relevance.ndim - 1 or mask.shape[0] != relevance.shape[0]:
        raise ValueError(
            f"mask {mask.shape} does not fit relevance {relevance.shape}: expected "
            f"(batch, *space, channels) against (batch, maps, *space, channels)"
        )
    mask = resize_mask(mask.astype(relevance.dtype), relevance.shape[2:-1])
    if mask.shape[-1] != relevance.shape[-1]:
        mask = mask[..., :1]
    return mask[:, None]


def _ones(area: Array, relevance: Array) -> tuple[int, ...]:
    return area.shape + (1,) * (relevance.ndim - area.ndim)


def _per_map(cut: Array | float, total: Array) -> Array:
    cut = jnp.asarray(cut, total.dtype)
    return cut if cut.ndim == 0 else cut[None]
