"""Diff-UNet, 38.4 million parameters: label maps drawn by diffusion (Xing et al. 2023).

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/diff_unet.py --workdir runs/diff_unet
Argument  folder of another prepared data set: diff_unet.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE
Samples   drawn by 10 steps of DDIM from noise that follows from `seed`: a prediction repeats to the
          bit. The steps' mean, weighted by how sure they are, is what windows add up; `runs` draws
          more, 4 as the authors do for BraTS, each at 10 times the cost of a U-Net
Memory    no attention; training keeps 7.0 GiB a sample for the gradients (float32), 1.5 with remat;
          a sample's ten label maps of nine organs take 0.3 GB in prediction
Differs   published: HU -175..250 to 0..1, four patches of a CT a step, 3000 epochs of a few CTs;
          here the plan's clipping and norm
Size      the published code's, whose parameters are an eleventh of the printed; not yet trained
          here, so no expected score
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
            "model": {"name": "diff_unet", "runs": 1, "seed": 0, "dtype": "bfloat16"},
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
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "warmup_steps": 8_300,  # 100 of 3000 epochs
            "weight_decay": 1e-3,
            "decay_all": True,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.eval_every = 5_000
    config.eval_batch_size = 2
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 1})
    config.jobs = ConfigDict()
    config.jobs.predict = ConfigDict(
        {"name": "touchstone_jax.jobs:Predict", "data": "data:example-ct"}
    )
    return config
