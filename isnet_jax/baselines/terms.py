"""What every baseline's objective is made of: one forward, the cross-entropy, the accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from isnet_jax.isnet import Programs, bind, correct, cross_entropy
from isnet_jax.legal import number

Array = jax.Array
Tree = Any
Result = tuple[Array, tuple[dict[str, Array], Tree]]


def forward(
    graphs: Programs, params: Tree, rest: Tree, *, training: bool
) -> Callable[[Array], tuple[Any, Tree]]:
    """``x -> (model's output, updated rest)``, BatchNorm on batch statistics in training."""
    return bind(graphs.train if training else graphs.infer, params, rest)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of samples whose largest logit (b, k) is the label's (b,); float32 scalar.

    Of labels (b, k) of 0 and 1 the share that the logits' signs tell right.
    """
    return correct(logits, labels).mean()


def classification(logits: Array, labels: Array) -> Array:
    """Mean cross-entropy of logits (b, k) and labels (b,) int, or (b, k) of 0 and 1; a scalar."""
    return cross_entropy(logits, labels).mean()


def needs(batch: dict[str, Array], method: str, *names: str) -> None:
    """Raises ValueError that names the entries which ``batch`` lacks."""
    missing = [name for name in names if name not in batch]
    if missing:
        raise ValueError(f"{method} needs batch entries {', '.join(missing)}; got {sorted(batch)}")


def not_negative(method: str, **values: float) -> None:
    """Raises ValueError for a setting that is no finite number >= 0."""
    for name, value in values.items():
        if not number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{method} {name}={value!r}; expected a finite number >= 0")


def background(batch: dict[str, Array], like: Array) -> Array:
    """1 - "mask" (b, h, w, 1 or c) in the dtype and shape of ``like`` (b, h, w, c)."""
    mask = batch["mask"]
    if mask.ndim != like.ndim or mask.shape[:-1] != like.shape[:-1]:
        raise ValueError(f"mask {mask.shape} does not fit the image {like.shape}")
    return 1 - jnp.broadcast_to(mask.astype(like.dtype), like.shape)
