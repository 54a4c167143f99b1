"""Swin UNETR with a residual block before each stage, 73 million (Hatamizadeh et al. 2022).

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/swin_unetr.py --workdir runs/swin_unetr
Argument  folder of another prepared data set: swin_unetr.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE, with
          --config.task.model.merging=legacy for those of MONAI up to 1.4 (Touchstone's, 2024)
Note      the original works at 1.5 mm: --config.jobs.prepare.spacing_mm=(1.5,1.5,1.5) there
Attention 8 layers of windows of 343 tokens: 357 million scores a sample, 1.4 GB as float32; remat
          holds one layer's at a time, 0.48 GB at most. Windows of an odd number of tokens with
          relative positions are nothing that the flash kernel of GPUs trains
Memory    training keeps 0.5 GB of each sample beside the weights, 6.3 GB without remat
          (benchmarks/segmentation_memory.py, bfloat16)
Size      the published one; not yet trained here, so no expected score
"""

from ml_collections import ConfigDict

PATCH = (96, 96, 96)


def get_config(arg: str = "runs/unet/prepare") -> ConfigDict:
    """The card; `arg` is the folder that the verb prepare made."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": arg,
            "model": {
                "name": "swin_unetr",
                "version": 2,  # 1: no residual blocks before the stages, 62 million
                "merging": "fixed",
                "dtype": "bfloat16",
                "remat": True,
            },
            "patch": PATCH,
            "augmentation": {"preset": "nnunet", "mirror_axes": (1, 2)},
            "validation": 0.05,
            "seed": 0,
        }
    )
    config.steps = 250_000
    config.batch_size = 2
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 2_500,
            "weight_decay": 1e-5,
            "decay_all": True,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.eval_every = 5_000
    config.eval_batch_size = 2
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 1})
    config.jobs = ConfigDict()
    config.jobs.predict = ConfigDict(
        {"name": "touchstone_jax.jobs:Predict", "data": "data:example-ct", "mirror": (1, 2)}
    )
    return config
