"""Right for the right reasons: the input gradient is penalised where it must not look.

Source: Ross, Hughes, Doshi-Velez 2017 (arXiv 1703.03717), equation 1; reduction and weight of the
ISNet authors' code (Bassi et al. 2024, Nature Communications 15:291).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    background,
    classification,
    forward,
    needs,
    not_negative,
)
from isnet_jax.isnet import Programs
from isnet_jax.legal import check

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class RRR:
    """Settings.

    Attributes:
        weight: P >= 0 of the penalty (ISNet's code: 0.5, tuned by data set).
        reduction: "mean" differentiates the batch MEAN of the log probabilities, as the ISNet
            authors do, so the penalty falls as 1/b^2; "sum" as Ross et al., independent of b.
    """

    weight: float = 0.5
    reduction: str = "mean"

    def __post_init__(self) -> None:
        not_negative("RRR", weight=self.weight)
        check("RRR reduction", self.reduction, REDUCTIONS)


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: RRR,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """``CE + P mean_i sum ((1 - mask) dl/dx_i)^2``, ``l = mean_i sum_k log p_ik``.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image", "label" and "mask" (b, h, w, 1 or c), 1 = foreground.
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics, through which the input gradient then goes.

    Raises:
        ValueError: no mask, or one that does not fit.
    """
    needs(batch, "RRR", "mask")
    x = batch["image"]
    outside = background(batch, x)

    def total(x: Array) -> tuple[Array, tuple[Array, Tree]]:
        logits, updated = forward(graphs, params, rest, training=training)(x)
        each = jax.nn.log_softmax(logits, -1).sum(-1)
        return each.mean() if method.reduction == "mean" else each.sum(), (logits, updated)

    slope, (logits, rest) = jax.grad(total, has_aux=True)(x)
    penalty = jnp.square(slope * outside).sum(tuple(range(1, x.ndim))).mean()
    plain = classification(logits, batch["label"])
    loss = plain + method.weight * penalty
    values = {"loss": loss, "cross_entropy": plain, "penalty": penalty}
    return loss, (values | {"accuracy": accuracy(logits, batch["label"])}, rest)
