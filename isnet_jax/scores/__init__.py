"""Scores of attribution maps: where they lie, whether they are faithful, robust, and of the model.

Layout: relevance (b, *space, c) as `explain` gives it (``cam[..., None]`` for a map without
channels), mask (b, *space, 1), 1 inside; every score is (b,) and runs under jit, in the
relevance's precision, float32 at least. Scores of the map alone are jitted already. Those that
compute a model are pure functions of their arrays: wrap them in ``jax.jit`` to compile once.

``pool`` makes one value of a pixel's channels: "sum", signed; "abs", the sum of absolute values;
"positive", the positive part of the sum. Where a score is undefined its signature says what
stands there: ``empty_mask`` for a mask without a pixel, ``zero_map`` for a map that is zero
everywhere (it wins if both are). A map with NaN or infinity scores NaN.
"""

from isnet_jax.scores.location import (
    heatmap_mask_dsc,
    mass_in_mask,
    pointing_game,
    relevance_rank,
)
from isnet_jax.scores.perturbation import Perturbation, deletion_auc, insertion_auc
from isnet_jax.scores.pixels import POOLS
from isnet_jax.scores.randomisation import RANDOMISERS, parameter_randomisation, rank_correlation
from isnet_jax.scores.sensitivity import max_sensitivity

__all__ = [
    "POOLS",
    "RANDOMISERS",
    "Perturbation",
    "deletion_auc",
    "heatmap_mask_dsc",
    "insertion_auc",
    "mass_in_mask",
    "max_sensitivity",
    "parameter_randomisation",
    "pointing_game",
    "rank_correlation",
    "relevance_rank",
]
