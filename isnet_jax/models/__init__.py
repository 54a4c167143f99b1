"""Classifiers built from `isnet_jax.lrp.layers`."""

from isnet_jax.models.backbone import Backbone
from isnet_jax.models.convert import from_torch
from isnet_jax.models.create import MODELS, create

__all__ = ["MODELS", "Backbone", "create", "from_torch"]
