"""Names of the benchmark: metrics, organs, and what Touchstone's result folders are called."""

from __future__ import annotations

from touchstone_jax.labels.schemes import SCHEMES

METRICS = ("dsc", "nsd")
"""Scores in 0..1, higher is better; the names of the result files."""

TOUCHSTONE_ORGANS = (
    *("spleen", "kidney_right", "kidney_left", "gall_bladder", "liver"),
    *("stomach", "aorta", "postcava", "pancreas"),
)
"""The nine of Touchstone 1.0 in the order of its tables."""

ORGANS = (
    *TOUCHSTONE_ORGANS,
    *(name for name in SCHEMES["abdomenatlas_1.1"].classes if name not in TOUCHSTONE_ORGANS),
)
"""All that a result file may have a column for: the 25 of Touchstone 2.0."""

AVERAGE, MACRO = "average", "macro"
"""Mean over cases of each case's mean over its organs (Touchstone's tables), and mean of the class
means (its leaderboard)."""

ALGORITHMS = {
    "nnU-Net_UniSeg": "UniSeg",
    "nnU-Net_MedNeXt": "MedNeXt",
    "nnU-Net_NexToU": "NexToU",
    "nnU-Net_STU-Net_B": "STU-Net-B",
    "nnU-Net_STU-Net_L": "STU-Net-L",
    "nnU-Net_STU-Net_H": "STU-Net-H",
    "nnU-Net_U-Net": "U-Net",
    "nnU-Net_ResEncL": "ResEncL",
    "Vision_Language_U-Net_CLIP": "U-Net & CLIP",
    "Vision_Language_Swin_UNETR_CLIP": "Swin UNETR & CLIP",
    "MONAI_LHU-Net": "LHU-Net",
    "MONAI_UCTransNet": "UCTransNet",
    "MONAI_Swin_UNETR": "Swin UNETR",
    "MONAI_UNEST": "UNesT",
    "MONAI_UNETR": "UNETR",
    "MONAI_SegVol": "SegVol",
    "_SAM-Adapter": "SAM-Adapter",
    "_MedFormer": "MedFormer",
    "_Diff-UNet": "Diff-UNet",
}
"""Folder of the released results to the paper's name; any other folder is its own name."""
