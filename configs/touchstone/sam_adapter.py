"""SAM-Adapter on MobileSAM, 11.6 million parameters, 5.3 of them trained (Gu et al. 2024).

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/sam_adapter.py --workdir runs/sam
Argument  folder of another prepared data set: sam_adapter.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE. Without
          them what is frozen is random, and nothing good comes of it
Note      slice by slice: a patch is a slice across z, enlarged to 1024 x 1024 pixels; the image
          encoder is frozen but for its adapters, its weights have no place in the optimizer
Asks      masks_and_quality of the network takes points, boxes and masks as prompts and gives the
          single mask and all qualities, as SAM does; what serves only these is frozen
Attention in windows: 40 million scores a slice, 162 MB, for the gradients; the decoder adds 4,096
          by 12 tokens. Nothing is ever 4,096 by 4,096. All together training keeps 1.5 GiB a slice
          (float32), 0.3 with remat
Loss      as published: cross-entropy of the softmax, squared Dice of the sigmoids of all classes
Differs   published: the decoder is frozen where it is SAM's own; here it is trained, for its ten
          masks are new. No rotation out of the slice
Size      the published one; not yet trained here, so no expected score
"""

from ml_collections import ConfigDict

PATCH = (512, 512, 1)


def get_config(arg: str = "runs/unet/prepare") -> ConfigDict:
    """The card; `arg` is the folder that the verb prepare made."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": arg,
            "model": {"name": "sam_adapter", "side": 1024, "dtype": "bfloat16"},
            "patch": PATCH,
            "augmentation": {"preset": "nnunet", "mirror_axes": (1,), "coarse_axis": 2},
            "loss": "sigmoid_dice_ce",
            "validation": 0.05,
            "seed": 0,
        }
    )
    config.steps = 100_000
    config.batch_size = 4
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "schedule": "poly",
            "warmup_steps": 200,
            "weight_decay": 0.1,
            "decay_all": True,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.eval_every = 5_000
    config.eval_batch_size = 4
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 1})
    config.jobs = ConfigDict()
    config.jobs.predict = ConfigDict(
        {"name": "touchstone_jax.jobs:Predict", "data": "data:example-ct"}
    )
    return config
