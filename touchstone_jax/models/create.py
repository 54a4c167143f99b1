"""Segmentation networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from touchstone_jax.legal import call, options_of, unknown
from touchstone_jax.models.diff_unet import DiffUNet
from touchstone_jax.models.lhunet import LHUNet
from touchstone_jax.models.medformer import MedFormer
from touchstone_jax.models.mednext import MedNeXt
from touchstone_jax.models.nextou import NexToU
from touchstone_jax.models.resenc import ResEncUNet
from touchstone_jax.models.sam_adapter import SAMAdapter
from touchstone_jax.models.segvol import SegVol
from touchstone_jax.models.stunet import STUNet
from touchstone_jax.models.swin_unetr import SwinUNETR
from touchstone_jax.models.swin_unetr_clip import SwinUNETRClip
from touchstone_jax.models.uctransnet import UCTransNet
from touchstone_jax.models.unest import UNesT
from touchstone_jax.models.unet import UNet
from touchstone_jax.models.unet_clip import UNetClip
from touchstone_jax.models.unetr import UNETR
from touchstone_jax.models.uniseg import UniSeg

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "unet": UNet,
    "resenc_l": ResEncUNet,
    "mednext_l": MedNeXt,
    "uniseg": UniSeg,
    "lhunet": LHUNet,
    "nextou": NexToU,
    "unet_clip": UNetClip,
    "medformer": MedFormer,
    "uctransnet": UCTransNet,
    "diff_unet": DiffUNet,
    "segvol": SegVol,
    "sam_adapter": SAMAdapter,
    "stunet": STUNet,
    "stunet_b": partial(STUNet, width=32, depth=1),
    "stunet_l": partial(STUNet, width=64, depth=2),
    "stunet_h": partial(STUNet, width=96, depth=3),
    "unetr": UNETR,
    "swin_unetr": SwinUNETR,
    "swin_unetr_clip": SwinUNETRClip,
    "unest": UNesT,
}


def create(
    name: str, in_channels: int = 1, *, num_classes: int, rngs: nnx.Rngs, **config: Any
) -> nnx.Module:
    """A freshly initialised network: (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes).

    In training mode it gives a tuple of logits, the finest first, for deep supervision, unless it
    has a ``training_loss`` of its own. It is made in evaluation mode. The kinds of prompts that it
    takes as a second argument, if any, are its ``prompts``; parameters that are not trained have
    slash paths that its ``frozen`` matches.

    Args:
        name: a key of `MODELS`.
        in_channels: channels of the image.
        num_classes: logits, the background's among them, at least 2.
        rngs: initialisation, e.g. ``nnx.Rngs(0)``.
        **config: the network's own arguments.

    Raises:
        ValueError: unknown name, an argument that the network does not take, or an illegal value.
    """
    for what, value, least in (("in_channels", in_channels, 1), ("num_classes", num_classes, 2)):
        if value < least:
            raise ValueError(f"model {name!r}: {what}={value}; expected at least {least}")
    shared = {"in_channels": in_channels, "num_classes": num_classes, "rngs": rngs}
    return call("model", name, MODELS, {**shared, **config})


def accepts(name: str, option: str) -> bool:
    """Whether the network of that name takes an argument of its own called ``option``.

    Raises:
        ValueError: unknown name.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return option in options_of(MODELS[name])
