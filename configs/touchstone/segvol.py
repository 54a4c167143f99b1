"""SegVol, 181 million parameters: organs asked for by name, points or box (Du et al. 2024).

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/segvol.py --workdir runs/segvol
Argument  folder of another prepared data set: segvol.py:DIR
Prompts   --config.jobs.predict.prompts=FILE, a JSON file of touchstone_jax.prompts; without it all
          organs are asked for by name
Zoom      as published: each organ is first looked for in the CT made as small as the patch, then
          in windows where it was seen (jobs.predict.zoom), for which half of what is trained on
          are such CTs (task.zoom_out). Points and boxes count in both; windows that an organ
          shares are also told where it was seen. Without zoom a point counts in the windows that
          hold it, a box in all that it reaches
CLIP      vectors of the names that are shipped are a stand-in, as in configs/touchstone/
          unet_clip.py. The published ones are of the text tower in SegVol's own weights, 63.2 of
          the 180.9 million parameters, frozen, so it runs once for each name: add --vocabulary
          merges.txt, or the folder of its vocab.json and merges.txt, to the line below. The vectors
          go into the checkpoint and into --workdir/embeddings.npz. CLIP's own ViT-B/32 weights make
          that file alone, for --config.task.model.embeddings=FILE
Weights   of the original: python -m launch convert --config … --workdir … --weights FILE --prefix
          model.
Asks      masks_and_quality of the network also takes masks as prompts, and gives SAM's other masks
          and their predicted quality. The loss reads none of the 4.0 million parameters of these,
          as the original's does not: they have no gradient, no decay and no optimizer state
Note      of one patch only: that of the model and that of the task are one; slices lie across z
Attention 12 layers of 12 heads over 2,048 tokens: 604 million scores a sample, 2.4 GB, for the
          gradients, unless computed again (remat: one layer's, 0.2 GB); the flash kernel of GPUs,
          which bfloat16 takes, keeps none. A mask of 96 channels takes 50 MB, one organ at a time.
          All together training keeps 10.0 GiB a sample (float32), 0.2 with remat
Differs   published: one organ a step, and pseudo masks; here all organs of a patch, each by a
          prompt drawn from six kinds, on the plan's spacing
Size      the published one; not yet trained here, so no expected score
"""

from ml_collections import ConfigDict

PATCH = (256, 256, 32)


def get_config(arg: str = "runs/unet/prepare") -> ConfigDict:
    """The card; `arg` is the folder that the verb prepare made."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": arg,
            "model": {
                "name": "segvol",
                "patch": PATCH,
                "embeddings": None,
                "dtype": "bfloat16",
                "remat": True,
            },
            "patch": PATCH,
            "augmentation": {"preset": "nnunet", "mirror_axes": (1, 2)},
            "zoom_out": 0.5,
            "validation": 0.05,
            "seed": 0,
        }
    )
    config.steps = 250_000
    config.batch_size = 4
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 5_000,  # 10 of 500 epochs
            "weight_decay": 1e-5,
            "decay_all": True,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.eval_every = 5_000
    config.eval_batch_size = 4
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 1})
    config.jobs = ConfigDict()
    config.jobs.predict = ConfigDict(
        {
            "name": "touchstone_jax.jobs:Predict",
            "data": "data:example-ct",
            "prompts": None,
            "zoom": True,
        }
    )
    return config
