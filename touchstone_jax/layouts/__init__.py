"""Data sets in folders: which files belong to which case."""

from touchstone_jax.layouts.discover import (
    LAYOUTS,
    Case,
    discover,
)

__all__ = [
    "Case",
    "LAYOUTS",
    "discover",
]
