"""ISNet in JAX: classifiers whose explanations obey a mask, and LRP for Flax models."""

from isnet_jax import attribution, losses, lrp, models, scores
from isnet_jax.isnet import ISNet, objective, programs
from isnet_jax.lrp import Composite, Explanation, explain

__all__ = [
    "Composite",
    "Explanation",
    "ISNet",
    "attribution",
    "explain",
    "losses",
    "lrp",
    "models",
    "objective",
    "programs",
    "scores",
]
