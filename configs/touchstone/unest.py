"""UNesT, 87 million parameters (Yu et al. 2023).

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/unest.py --workdir runs/unest
Argument  folder of another prepared data set: unest.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE
Note      of one patch only: that of the model and that of the task are one. The original's Dice has
          squares in its denominator, ours is nnU-Net's
Attention 12 layers of blocks of 216 tokens: 36 million scores a sample, 143 MB as float32; remat
          holds one layer's at a time, 48 MB at most; the flash kernel of GPUs, which bfloat16
          takes, keeps none
Memory    training keeps 2.9 GB of each sample beside the weights, 0.34 GB with
          --config.task.model.remat=True (benchmarks/segmentation_memory.py, bfloat16)
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
            "model": {"name": "unest", "patch": PATCH, "dtype": "bfloat16", "remat": False},
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
            "name": "adam",
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "warmup_steps": 2_500,
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
