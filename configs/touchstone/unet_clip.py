"""U-Net & CLIP, 19.4 million parameters (Liu et al. 2023), as trained on nine organs.

Command   for VERB in verify prepare: configs/touchstone/unet.py; then, for VERB in train predict:
          python -m launch VERB --config configs/touchstone/unet_clip.py --workdir runs/unet_clip
Argument  folder of another prepared data set: unet_clip.py:DIR
CLIP      the names' vectors that are shipped are a stand-in, a random projection of their letters
          (touchstone_jax/models/text.py): masks follow the name, nothing is known about language.
          The published network has those of CLIP's ViT-B/32 text tower, projected, for "A
          computerized tomography of a {organ}". Its weights and vocabulary make the file
          --workdir/embeddings.npz by: python -m launch convert --config … --workdir … --weights
          CLIP.safetensors --vocabulary bpe_simple_vocab_16e6.txt.gz; train and predict with
          --config.task.model.embeddings=FILE. Or an .npy of floats (organs, 512) in the order of
          the labels
Weights   of the original, vectors included: python -m launch convert --config … --workdir …
          --weights FILE
Memory    no attention; an organ's mask takes 16 channels of the patch, computed again for their
          gradient: 0.5 GB for nine organs and 96 voxels a side, one sample at a time. All blocks
          together keep 5.8 GiB a sample for their gradients, 2.6 with remat
Differs   published: HU -175..250 to 0..1 at 1.5 mm; here the plan's clipping, norm and spacing
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
            "model": {"name": "unet_clip", "embeddings": None, "dtype": "float32"},
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
            "warmup_steps": 6_250,  # 20 of 800 epochs
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
