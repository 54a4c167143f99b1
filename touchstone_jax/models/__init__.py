"""Segmentation networks: (b, x, y, z, c) to logits, and how they follow from a plan."""

from touchstone_jax.models.count import count_parameters
from touchstone_jax.models.create import MODELS, accepts, create
from touchstone_jax.models.topology import Topology, topology
from touchstone_jax.models.unet import UNet

__all__ = ["MODELS", "Topology", "UNet", "accepts", "count_parameters", "create", "topology"]
