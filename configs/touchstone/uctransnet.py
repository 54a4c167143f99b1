"""UCTransNet, 68.0 million parameters (Wang et al. 2022), in three dimensions.

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/uctransnet.py --workdir runs/uctransnet
Argument  folder of another prepared data set: uctransnet.py:DIR
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE. The
          authors' code is two-dimensional; layers and names are theirs with one dimension more
Memory    attention among channels, 720 x 720 scores a head and layer whatever the patch: 8 MB a
          layer and sample in float32, twice that where gradients keep scores and softmax, 66 MB in
          all. Scores are normed as a whole before the softmax, so no flash kernel takes them. All
          blocks together keep 6.2 GiB a sample for their gradients, 2.2 with remat
Note      of one patch only: that of the model and that of the task are one
Loss      as published, half Dice and half binary cross-entropy with an organ's voxels and the
          others at equal weight: there of one class, here the mean over the organs
Size      that of the benchmark's table; not yet trained here, so no expected score
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
            "model": {"name": "uctransnet", "patch": PATCH, "dtype": "bfloat16"},
            "patch": PATCH,
            "augmentation": {"preset": "nnunet", "mirror_axes": (1, 2)},
            "loss": "balanced_dice_bce",
            "smooth": 4e-5,  # what the authors' halved masks make of 1e-5
            "validation": 0.05,
            "seed": 0,
        }
    )
    config.steps = 250_000
    config.batch_size = 2
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "schedule": "cosine",
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
