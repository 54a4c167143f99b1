"""MedFormer, 38.6 million parameters (Gao et al. 2022), in its authors' settings for KiTS and LiTS.

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/medformer.py --workdir runs/medformer
Argument  folder of another prepared data set: medformer.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE
Memory    attention between voxels and 64 codes, linear in the voxels: 34 MB of scores a block and
          way at 32³ voxels and four heads (float32), 0.4 GB a sample over all blocks and both ways
          where the gradients keep them; none where flash kernels run (bfloat16 on GPUs). All blocks
          together keep 17.2 GiB a sample for their gradients, 1.4 with remat
Loss      as published: cross-entropy with the background at half weight, an adaptive Tversky form
          of Dice over the batch, both heads at one half
Size      the published one; not yet trained here, so no expected score
"""

from ml_collections import ConfigDict

PATCH = (128, 128, 128)


def get_config(arg: str = "runs/unet/prepare") -> ConfigDict:
    """The card; `arg` is the folder that the verb prepare made."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": arg,
            "model": {"name": "medformer", "dtype": "bfloat16", "remat": True},
            "patch": PATCH,
            "augmentation": {"preset": "nnunet", "mirror_axes": (1, 2)},
            "loss": "tversky_ce",
            "batch_dice": True,
            "validation": 0.05,
            "ema": 0.99,
            "seed": 0,
        }
    )
    config.steps = 250_000
    config.batch_size = 2
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 4e-4,  # 6e-4 for AMOS
            "schedule": "cosine",
            "warmup_steps": 1_250,
            "epsilon": 1e-5,
            "weight_decay": 0.05,
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
