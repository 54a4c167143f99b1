"""The networks of segmentation_step.py in PyTorch: same layers, no converter; needs torch.

Written for timing: what is computed is that of touchstone_jax.models, weights are random.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTHS = (32, 64, 128, 256, 320, 320)
SIZE_L = (3, 4, 8, 8, 8, 8, 8, 4, 3)


def unit(inputs: int, outputs: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    """3-D convolution, affine instance norm and, if asked, leaky ReLU."""
    layers = [
        nn.Conv3d(inputs, outputs, 3, stride, 1),
        nn.InstanceNorm3d(outputs, affine=True),
    ]
    return nn.Sequential(*layers, *([nn.LeakyReLU(0.01)] if act else []))


class Residual(nn.Module):
    """nnU-Net's residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, outputs, stride), unit(outputs, outputs, 1, False))
        skip = [nn.AvgPool3d(stride)] if stride > 1 else []
        if inputs != outputs:
            norm = nn.InstanceNorm3d(outputs, affine=True)
            skip += [nn.Conv3d(inputs, outputs, 1, bias=False), norm]
        self.skip = nn.Sequential(*skip)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return nn.functional.leaky_relu(self.body(x) + self.skip(x), 0.01)


class NeXtBlock(nn.Module):
    """MedNeXt's block: "same", "down" or "up"."""

    def __init__(self, inputs: int, outputs: int, expansion: int, mode: str) -> None:
        super().__init__()
        kind = nn.ConvTranspose3d if mode == "up" else nn.Conv3d
        stride = 1 if mode == "same" else 2
        hidden = expansion * inputs
        self.body = nn.Sequential(
            kind(inputs, inputs, 3, stride, 1, groups=inputs),
            nn.GroupNorm(inputs, inputs),
            nn.Conv3d(inputs, hidden, 1),
            nn.GELU(),
            nn.Conv3d(hidden, outputs, 1),
        )
        self.skip = nn.Identity() if mode == "same" else kind(inputs, outputs, 1, stride)
        self.up = mode == "up"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        made = self.body(x) + self.skip(x)
        return nn.functional.pad(made, (1, 0, 1, 0, 1, 0)) if self.up else made


class UShape(nn.Module):
    """The common way down and up; in training the logits of every scale."""

    def __init__(self, encoder, ups, decoder, heads, adds: bool = False) -> None:
        super().__init__()
        self.encoder, self.ups = nn.ModuleList(encoder), nn.ModuleList(ups)
        self.decoder, self.heads = nn.ModuleList(decoder), nn.ModuleList(heads)
        self.adds = adds

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See the class."""
        skips, logits = [], []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, stage, head in zip(self.ups, self.decoder, self.heads, strict=True):
            below, skip = up(x), skips.pop()
            x = stage(below + skip if self.adds else torch.cat([below, skip], 1))
            if self.training or not skips:
                logits.append(head(x))
        return logits[::-1]


def create(name: str, classes: int = 10) -> UShape:
    """unet, resenc_l or mednext_l with all sides of all kernels and strides alike."""
    if name == "mednext_l":
        return _mednext(classes)
    encoder, inputs = [], 1
    blocks = (1, 3, 4, 6, 6, 6)
    for level, width in enumerate(WIDTHS):
        stride = 2 if level else 1
        if name == "unet":
            stage = [unit(inputs, width, stride), unit(width, width)]
        else:
            stem = [] if level else [unit(1, width)]
            first = Residual(inputs if level else width, width, stride)
            rest = [Residual(width, width, 1) for _ in range(blocks[level] - 1)]
            stage = [*stem, first, *rest]
        encoder.append(nn.Sequential(*stage))
        inputs = width
    ups, decoder, heads = [], [], []
    for level in reversed(range(5)):
        width = WIDTHS[level]
        ups.append(nn.ConvTranspose3d(WIDTHS[level + 1], width, 2, 2))
        convs = [unit(2 * width, width), *([unit(width, width)] if name == "unet" else [])]
        decoder.append(nn.Sequential(*convs))
        heads.append(nn.Conv3d(width, classes, 1))
    return UShape(encoder, ups, decoder, heads)


def _mednext(classes: int) -> UShape:
    widths = [32 * 2**level for level in range(5)]

    def level(width: int, number: int) -> list[nn.Module]:
        return [NeXtBlock(width, width, SIZE_L[number], "same") for _ in range(SIZE_L[number])]

    encoder = [nn.Sequential(nn.Conv3d(1, 32, 1), *level(32, 0))]
    for i in range(1, 5):
        down = NeXtBlock(widths[i - 1], widths[i], SIZE_L[i], "down")
        encoder.append(nn.Sequential(down, *level(widths[i], i)))
    ups, decoder, heads = [], [], []
    for i in reversed(range(4)):
        ups.append(NeXtBlock(widths[i + 1], widths[i], SIZE_L[8 - i], "up"))
        decoder.append(nn.Sequential(*level(widths[i], 8 - i)))
        heads.append(nn.Conv3d(widths[i], classes, 1))
    return UShape(encoder, ups, decoder, heads, adds=True)
