"""The ISNet paper's experiments on your copies of its data: X-rays, CheXpert, dogs, faces.

Command   python -m launch benchmark --config configs/isnet/photos.py:xray --workdir runs/xray
          --config.task.data.folder=DIR --config.task.data.masks=MASKS
Argument  xray (folders SPLIT/CLASS/picture with masks at the same places below MASKS; any split
          beside train and val is a test set, an O.O.D. hospital say); chexpert (CSV files, several
          findings an image); dogs (Stanford Dogs); celeba (CelebA's attributes); each alone, or
          with a row: xray-erm, xray-isnet, xray-pipeline …
Hardware  one GPU of 24 GB or more (224 x 224, DenseNet-121, ResNet-50, batch 16)
Expected  the paper's rows (Bassi et al. 2024, Nature Communications 15:291), and a student of a
          teacher that sees the foreground alone (arXiv 2407.09788); none of these data sets is at
          hand here, so nothing is measured
"""

from ml_collections import ConfigDict

DATA = {
    "xray": {
        "source": "image_folder",
        "folder": "",
        "masks": "",
        "size": 224,
        "channels": 3,
        "classes": (),  # () = the folders of "train", sorted
        "bias": None,  # {"kind": "position"}: a synthetic marker in the background as well
    },
    "chexpert": {
        "source": "csv_labels",
        "tables": {"train": "train.csv", "val": "valid.csv"},  # and more, each a test set
        "labels": ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"),
        "folder": "",  # what the tables' paths are relative to
        "masks": "",
        "uncertain": "ones",  # -1 becomes 1 (ones), 0 (zeros), or its row is left out (drop)
        "size": 224,
    },
    "dogs": {
        "source": "stanford_dogs",
        "folder": "",
        "breeds": ("Pekinese", "Tibetan_mastiff", "pug"),
        "masks": "boxes",  # or a folder of masks
        "size": 224,
        "bias": None,
    },
    "celeba": {
        "source": "celeba",
        "folder": "",
        "attributes": ("Rosy_Cheeks", "High_Cheekbones", "Smiling"),
        "masks": "",
        "size": 224,
        "bias": None,  # as above, of one attribute
    },
}
DENSENET, RESNET = {"name": "densenet121"}, {"name": "resnet50"}
ROWS = {
    "erm": {"method": "erm", "model": DENSENET},
    "isnet": {"method": "original", "model": DENSENET},
    "selective": {"method": "selective", "model": DENSENET},
    # By the batch's mean, as published, the penalty is 256 times smaller and the row is ERM's.
    "rrr": {"method": "rrr", "model": DENSENET, "options": {"weight": 0.5, "reduction": "sum"}},
    "extended_gain": {"method": "extended_gain", "model": DENSENET},
    "gals": {"method": "gals", "model": RESNET},
    "ham": {"method": "ham", "options": {"normal": None}},
    "ag_sononet": {"method": "ag_sononet"},
    "multitask_unet": {"method": "multitask_unet", "options": {"weight": 0.75}},
    "pipeline": {"method": "pipeline", "model": DENSENET, "options": {"segmenter_steps": 5000}},
    "vit": {"method": "erm", "model": {"name": "vit_b_16"}},
    "distillation": {
        "method": "distillation",
        "model": {"name": "resnet18"},
        "options": {"target": "lrp"},
        "teacher": {"kind": "masked", "model": {"name": "resnet34"}, "steps": 50_000},
    },
}
# Several findings an image: what needs one label an image is left out.
SINGLE = ("selective", "rrr", "extended_gain", "distillation")


def get_config(arg: str = "xray") -> ConfigDict:
    """The card of one data set, or one row of it."""
    data, _, row = arg.partition("-")
    if data not in DATA or row not in ("", *ROWS):
        raise ValueError(
            f"argument {arg!r}: legal are {', '.join(DATA)}, or one of them, '-' and a row: "
            f"{', '.join(ROWS)}"
        )
    several = data in ("chexpert", "celeba")
    rows = [row] if row else [name for name in ROWS if not (several and name in SINGLE)]
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "isnet_jax.tasks:MaskedClassifier",
            "data": DATA[data],
            "method": "erm",
            "model": {},
            "options": {},
            "teacher": {},
            "composite": {"name": "isnet_flex_zb", "epsilon": 0.01},
            "loss": {"decay": 0.9},
            "weight": 0.7,  # P
            "tune_steps": 1000,  # of a plain classifier that tunes the cuts C1, C2
            "tune_rate": 1e-3,
            "remat": True,
        }
    )
    config.steps = 50_000
    config.batch_size = 16
    config.optimizer = ConfigDict(
        {"name": "sgd", "learning_rate": 1e-3, "momentum": 0.99, "clip_norm": 1.0}
    )
    config.eval_every = 1000
    config.checkpoint = ConfigDict({"every": 1000, "best": "val/loss"})
    config.seed = 0
    config.seeds = 1
    config.runs = ConfigDict(
        {f"{data}-{name}": {"task": ROWS[name]} for name in rows}, sort_keys=False
    )
    config.jobs = ConfigDict({"benchmark": {"name": "isnet_jax.tables:MethodTables"}})
    return config
