"""Predictions scored against references, case by case."""

from touchstone_jax.evaluate.job import (
    FLAGS,
    MISSING,
    SKIPS,
    Evaluate,
)

__all__ = [
    "Evaluate",
    "FLAGS",
    "MISSING",
    "SKIPS",
]
