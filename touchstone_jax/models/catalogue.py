"""What was published about each network and what ours counts: plain data, no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_FIRST_FLAT = {"kernels": ((1, 3, 3), *[3] * 5), "strides": (1, (1, 2, 2), *[2] * 4)}
_HEAD = "as printed with TotalSegmentator's head of 105 classes; with 10 classes "


class Published(NamedTuple):
    """A row of Touchstone's Table 2 (Bassi et al. 2024) and how ours reaches it.

    Attributes:
        printed: parameters in millions as the table has them.
        parameters: of our network with `config` and `num_classes`.
        num_classes: logits of the configuration that is counted.
        config: arguments of the network of the configuration that is counted.
        patch: voxels (x, y, z) of `gflops`.
        gflops: 10⁹ floating-point operations of a forward pass of ours over the patch; two a
            multiply-add of convolutions and matrix products.
        paper: who, where.
        reason: why the count is what it is.
        tower: parameters, beside `parameters`, of a frozen text tower that runs once for each
            name; `touchstone_jax.models.clip_text.ClipText`.
    """

    printed: float
    parameters: int
    num_classes: int
    config: Mapping[str, Any]
    patch: tuple[int, int, int]
    gflops: int
    paper: str
    reason: str
    tower: int = 0


CATALOGUE: dict[str, Published] = {
    "unet": Published(
        31.1,
        31_119_538,
        10,
        _FIRST_FLAT,
        (128, 128, 128),
        1122,
        "Isensee et al., Nature Methods 2021",
        "first stage flat (kernel 1x3x3, stride 1x2x2); a plan without it has 31.2M",
    ),
    "resenc_l": Published(
        102.0,
        102_273_714,
        10,
        _FIRST_FLAT,
        (128, 128, 128),
        2083,
        "Isensee et al., MICCAI 2024",
        "the U-Net's plan; no known plan gives 102.0, which seems to be 102 rounded",
    ),
    "stunet_b": Published(
        58.3,
        58_262_669,
        105,
        {},
        (128, 128, 128),
        981,
        "Huang et al., arXiv 2304.06716",
        f"{_HEAD}58.168M",
    ),
    "stunet_l": Published(
        440.3,
        440_302_605,
        105,
        {},
        (128, 128, 128),
        7515,
        "Huang et al., arXiv 2304.06716",
        f"{_HEAD}440.114M",
    ),
    "stunet_h": Published(
        1457.3,
        1_457_326_221,
        105,
        {},
        (128, 128, 128),
        25006,
        "Huang et al., arXiv 2304.06716",
        f"{_HEAD}1457.043M",
    ),
    "mednext_l": Published(
        61.8,
        61_789_170,
        10,
        {},
        (128, 128, 128),
        989,
        "Roy et al., MICCAI 2023",
        "kernel 3; the original stores one dummy number more",
    ),
    "uniseg": Published(
        31.0,
        32_103_631,
        2,
        {},
        (64, 192, 192),
        1523,
        "Ye et al., MICCAI 2023",
        "with prompt, 9 tasks and 2 classes; without prompt 31.18M, the likely origin of 31",
    ),
    "lhunet": Published(
        8.6,
        8_568_481,
        10,
        {},
        (96, 96, 96),
        79,
        "Sadegheih et al., arXiv 2404.05102",
        "the published arguments for AbdomenAtlas",
    ),
    "nextou": Published(
        81.9,
        81_931_824,
        10,
        {},
        (96, 160, 160),
        956,
        "Shi et al., arXiv 2305.15911",
        "52.95M are trained, 28.98M are fixed tables of positions for this patch",
    ),
    "unet_clip": Published(
        19.1,
        19_416_417,
        10,
        {},
        (96, 96, 96),
        1651,
        "Liu et al., ICCV 2023",
        "printed is the backbone alone, 19.07M; with the CLIP-driven head 19.42M",
    ),
    "uctransnet": Published(
        68.0,
        67_990_666,
        11,
        {},
        (128, 128, 128),
        1489,
        "Wang et al., AAAI 2022",
        "in three dimensions; width 48 and ten outputs give the number; the original is 2-D",
    ),
    "medformer": Published(
        38.5,
        38_587_252,
        10,
        {},
        (128, 128, 128),
        2289,
        "Gao et al., arXiv 2203.00131",
        "the authors' settings for KiTS and LiTS; those for AMOS have 39.59M, none known 38.5",
    ),
    "unetr": Published(
        101.8,
        101_787_049,
        9,
        {},
        (96, 96, 96),
        462,
        "Hatamizadeh et al., WACV 2022",
        "feature size 32 and 9 classes; the size 16 of the authors' scripts has 92.8M",
    ),
    "diff_unet": Published(
        434.0,
        38_392_969,
        10,
        {},
        (96, 96, 96),
        10622,
        "Xing et al., arXiv 2303.10326",
        "the public code; no simple multiple of its widths has 434.0M; ten steps of DDIM, of which "
        "a step has 1,034 GFLOPs",
    ),
    "segvol": Published(
        181.0,
        117_724_112,
        10,
        {},
        (256, 256, 32),
        708,
        "Du et al., NeurIPS 2024",
        "117,724,112 and CLIP's text tower, frozen, which runs once for each name: 63,165,952",
        63_165_952,
    ),
    "sam_adapter": Published(
        11.6,
        11_640_499,
        10,
        {},
        (512, 512, 1),
        89,
        "Gu et al., arXiv 2404.09957",
        "the total, with MobileSAM's encoder; 5.29M are trained; 0.60M are of prompts, quality and "
        "the encoder's own classes, for which the published use does not ask",
    ),
    "swin_unetr": Published(
        72.8,
        72_762_411,
        9,
        {},
        (96, 96, 96),
        688,
        "Hatamizadeh et al., BrainLes 2021",
        "the second version, with a residual block before each stage, and 9 classes; the first has "
        "62.187M",
    ),
    "swin_unetr_clip": Published(
        62.2,
        62_595_315,
        10,
        {},
        (96, 96, 96),
        639,
        "Liu et al., ICCV 2023",
        "printed is the backbone alone, 62.19M; with the CLIP-driven head 62.60M",
    ),
    "unest": Published(
        87.2,
        87_201_066,
        9,
        {},
        (96, 96, 96),
        458,
        "Yu et al., Medical Image Analysis 2023",
        "the base size of MONAI's model zoo, and 9 classes",
    ),
}


def table() -> str:
    """Name, parameters, patch, operations, paper, card and the reason of the count, aligned."""
    rows = [("model", "parameters", "printed", "patch", "GFLOPs", "paper", "card", "counted")]
    for name, row in CATALOGUE.items():
        rows.append(
            (
                name,
                f"{row.parameters + row.tower:,}",
                f"{row.printed}M",
                "x".join(map(str, row.patch)),
                f"{row.gflops:,}",
                row.paper,
                f"configs/touchstone/{name}.py",
                row.reason,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (1, 2, 4)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
