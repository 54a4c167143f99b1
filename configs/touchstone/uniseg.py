"""UniSeg without its prompt, as its authors fine-tune it (Ye et al. 2023), 31M parameters.

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/uniseg.py --workdir runs/uniseg
Argument  folder of another prepared data set: uniseg.py:DIR
Prompt    with --config.task.model.tasks=9 it learns the channel of one task, 0; a prediction takes
          another by --config.jobs.predict.prompts=FILE, which holds {"task": 3}
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE
Note      its first stage is flat along x, so x must be the coarse axis of what was prepared
Size      the published one; not yet trained here, so no expected score
"""

from ml_collections import ConfigDict

PATCH = (64, 192, 192)


def get_config(arg: str = "runs/unet/prepare") -> ConfigDict:
    """The card; `arg` is the folder that the verb prepare made."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": arg,
            "model": {"name": "uniseg", "tasks": 0, "dtype": "bfloat16"},
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
            "name": "sgd",
            "learning_rate": 1e-2,
            "schedule": "poly",
            "momentum": 0.99,
            "nesterov": True,
            "weight_decay": 3e-5,
            "decay_all": True,
            "clip_norm": 12.0,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.eval_every = 5_000
    config.eval_batch_size = 2
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 1})
    config.jobs = ConfigDict()
    config.jobs.predict = ConfigDict(
        {
            "name": "touchstone_jax.jobs:Predict",
            "data": "data:example-ct",
            "mirror": (1, 2),
            "prompts": None,
        }
    )
    return config
