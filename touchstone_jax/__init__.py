"""Touchstone in JAX: CT segmentation, its scores and its benchmark."""

from touchstone_jax import metrics

__all__ = ["metrics"]
