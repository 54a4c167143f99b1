"""Label schemes of the data sets, and label maps made from masks and other maps."""

from touchstone_jax.labels.combine import (
    combine_masks,
    map_labels,
)

__all__ = [
    "combine_masks",
    "map_labels",
]
