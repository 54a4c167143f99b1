"""Every family as small as it goes."""

TINY = {
    "unet": {"widths": (4, 6, 8)},
    "resenc_l": {"widths": (4, 6, 8), "blocks": (1, 2, 1)},
    "stunet": {"widths": (4, 6, 8), "depth": (1, 2, 1)},
    "mednext_l": {"channels": 4, "blocks": (1, 1, 1), "expansions": (2,) * 3},
    "uniseg": {
        "widths": (4, 6, 8),
        "kernels": 3,
        "strides": (1, 2, 2),
        "patch": 8,
        "tasks": 3,
        "stems": (1, 2),
    },
    "lhunet": {
        "patch": (32, 32, 64),
        "cnn_widths": (4, 4),
        "hybrid_widths": (4, 4, 8),
        "heads": (2, 2, 2),
        "projections": (4, 2),
    },
    "nextou": {
        "patch": 16,
        "widths": (4, 6, 6, 12),
        "pools": (2, 2, 2),
        "neighbours": (4, 2),
        "ratios": (2, 1),
    },
    "unet_clip": {"widths": (4, 4, 6, 8), "groups": (2, 2)},
    "uctransnet": {"patch": 32, "width": 2, "heads": 2, "layers": 1},
    "medformer": {
        "widths": (4, 4, 4, 6, 8),
        "convs": (1, 0, 0, 0, 0, 0, 1, 1),
        "attentions": (1, 1, 1, 1, 1),
        "heads": (2, 2, 2, 2, 2),
        "codes": 2,
        "fusion": (4, 2, 1),
    },
    "unetr": {
        "patch": (16, 16, 32),
        "width": 4,
        "hidden": 8,
        "mlp": 8,
        "layers": 4,
        "heads": 2,
        "taps": (0, 1, 2),
    },
    "diff_unet": {"widths": (4, 4, 4, 4, 6, 4), "steps": 2},
    "segvol": {
        "patch": (16, 16, 8),
        "token": (8, 8, 4),
        "width": 16,
        "layers": 1,
        "heads": 2,
        "hidden": 8,
        "decoder_heads": 2,
        "decoder_hidden": 8,
    },
    "sam_adapter": {
        "side": 32,
        "encoder_config": {
            "widths": (4, 4, 8, 8),
            "depths": (1, 1, 1, 1),
            "heads": (1, 1, 2, 2),
            "windows": (1, 3, 2, 2),
        },
        "width": 16,
        "heads": 2,
        "hidden": 8,
    },
    "swin_unetr": {"width": 4, "depths": (2, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2},
    "swin_unetr_clip": {
        "width": 4,
        "depths": (2, 1, 1, 1),
        "heads": (1, 1, 2, 2),
        "window": 2,
        "groups": (4, 2),
    },
    "unest": {
        "patch": (32, 32, 64),
        "width": 2,
        "depths": (1, 1, 2),
        "heads": (2, 2, 2),
        "skip": 0.05,
        "remat": True,
    },
}
SIDES = {
    "lhunet": (32, 32, 64),
    "nextou": (16, 16, 16),
    "unet_clip": (16, 16, 16),
    "medformer": (32, 32, 32),
    "uctransnet": (32, 32, 32),
    "unetr": (16, 16, 32),
    "swin_unetr": (32, 32, 64),
    "swin_unetr_clip": (32, 32, 64),
    "unest": (32, 32, 64),
    "diff_unet": (32, 16, 16),
    "segvol": (16, 16, 8),
    "sam_adapter": (12, 10, 2),
}
# Fractions of the sides of the scales that training gives.
SCALES = {
    "medformer": (1, 1),
    "uctransnet": (1,),
    "lhunet": (1,),
    "unet_clip": (1,),
    "unetr": (1,),
    "swin_unetr": (1,),
    "swin_unetr_clip": (1,),
    "unest": (1,),
    "diff_unet": (1,),
    "segvol": (1,),
    "sam_adapter": (1,),
    "nextou": (1, 2, 4),
}
# Samples that it takes to reach every parameter.
BATCHES = {"lhunet": 2, "segvol": 8}


def sides(name):
    return SIDES.get(name, (8, 8, 8))
