"""Group distributionally robust optimisation: the worst groups weigh the most.

Source: Sagawa et al. 2020 (arXiv 1911.08731), algorithm 1 and equation 5 (adjustment); the
normalised exponent is that of PGI's code, "plain" that of DomainBed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from isnet_jax.baselines.groups import group_means, memberships
from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    forward,
    needs,
    not_negative,
)
from isnet_jax.isnet import Programs, cross_entropy
from isnet_jax.legal import check

EXPONENTS = ("normalised", "plain")


@dataclass(frozen=True)
class GroupDRO:
    """Settings.

    Attributes:
        groups: number of groups, >= 1.
        step: eta >= 0 of the groups' weights.
        exponent: "normalised" raises a group's weight by ``exp(eta l_g / sum l)``, "plain" by
            ``exp(eta l_g)``.
        adjustment: C >= 0, adds ``C / sqrt(n_g)`` to a group's loss, n_g being its number of
            samples in ``group_sizes``.
        group_sizes: (groups,) samples of each group in the training set; only for adjustment.
    """

    groups: int = 2
    step: float = 1e-2
    exponent: str = "normalised"
    adjustment: float = 0.0
    group_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        not_negative("GroupDRO", step=self.step, adjustment=self.adjustment)
        check("GroupDRO exponent", self.exponent, EXPONENTS)
        if self.groups < 1:
            raise ValueError(f"GroupDRO groups={self.groups}; expected at least 1")
        sizes = self.group_sizes
        if self.adjustment > 0 and (len(sizes) != self.groups or min(sizes, default=0) < 1):
            raise ValueError(
                f"GroupDRO adjustment needs {self.groups} group_sizes >= 1, got {sizes}"
            )


def with_weights(rest: Tree, method: GroupDRO) -> dict[str, Tree]:
    """The "everything else" of this method: the model's, and even weights q (groups,)."""
    return {"model": rest, "weights": jnp.full((method.groups,), 1 / method.groups)}


def raised(weights: Array, losses: Array, method: GroupDRO, present: Array) -> Array:
    """The groups' new weights (g,), sum 1, from theirs and their losses (g,).

    A group that is not ``present`` (g,) bool keeps its weight before the normalisation.
    """
    exponent = losses
    if method.exponent == "normalised":
        total = jnp.where(present, losses, 0).sum()
        exponent = losses / jnp.where(total > 0, total, 1)
    # The largest exponent cancels out: a plain one of a big loss would overflow.
    exponent = jnp.where(present, method.step * exponent, 0)
    grown = weights * jnp.exp(exponent - exponent.max())
    return grown / grown.sum()


def objective(
    graphs: Programs,
    params: Tree,
    rest: dict[str, Tree],
    batch: dict[str, Array],
    method: GroupDRO,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """``sum_g q_g (l_g + C / sqrt(n_g))`` with the weights q raised first, free of derivatives.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: `with_weights` of BatchNorm statistics. The batch should hold each group evenly.
        batch: "image", "label" and "group" (b,) int in 0..groups-1.
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics, and the weights move.

    Raises:
        ValueError: no groups, or ``rest`` without weights.
    """
    needs(batch, "GroupDRO", "group")
    if set(rest) != {"model", "weights"}:
        raise ValueError("GroupDRO keeps weights in rest: start from with_weights(rest, method)")
    logits, model_rest = forward(graphs, params, rest["model"], training=training)(batch["image"])
    members = memberships(batch["group"], method.groups, logits.dtype)
    each, present = group_means(cross_entropy(logits, batch["label"]), members), members.any(0)
    if method.adjustment:
        each = each + method.adjustment / jnp.sqrt(jnp.asarray(method.group_sizes, each.dtype))
        each = jnp.where(present, each, 0)
    weights = rest["weights"]
    if training:
        old = weights.astype(each.dtype)
        weights = raised(old, jax.lax.stop_gradient(each), method, present).astype(weights.dtype)
    loss = (weights.astype(each.dtype) * each).sum()
    values = {"loss": loss, "worst": each.max(), "accuracy": accuracy(logits, batch["label"])}
    return loss, (values, {"model": model_rest, "weights": weights})
