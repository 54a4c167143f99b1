"""Empirical risk minimisation: the plain classifier, which every table starts with."""

from __future__ import annotations

from dataclasses import dataclass

from isnet_jax.baselines.terms import Array, Result, Tree, accuracy, classification, forward
from isnet_jax.isnet import Programs


@dataclass(frozen=True)
class ERM:
    """Has no settings."""


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: ERM,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """Mean cross-entropy, and (metrics, updated rest); see `isnet_jax.baselines`."""
    logits, rest = forward(graphs, params, rest, training=training)(batch["image"])
    loss = classification(logits, batch["label"])
    return loss, ({"loss": loss, "accuracy": accuracy(logits, batch["label"])}, rest)
