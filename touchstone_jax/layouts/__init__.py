"""Data sets in folders: which files belong to which case."""

from touchstone_jax.layouts.case_files import Case
from touchstone_jax.layouts.discover import LAYOUTS, discover

__all__ = [
    "Case",
    "LAYOUTS",
    "discover",
]
