"""Toy: 12 steps of a small network, for the tests of the launcher.

`tests` only.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ("", "runs", "failing"):
        raise ValueError(f"argument {arg!r}: legal are 'runs', 'failing' or nothing")
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "tests.launch.toy:Toy",
            "width": 64,
            "noise": 0.1,
            "kills": "",
            "count": 40,
            "nan_at": -1,
            "fail": "",
            "shift": None,
            "place": "",
        }
    )
    config.steps = 12
    config.batch_size = 8
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1})
    config.log_every = 1
    config.eval_every = 1
    config.checkpoint = ConfigDict({"every": 2, "keep": 3})
    if arg == "failing":
        runs = {"broken": {"task": {"fail": "evaluate"}}, "sound": {}}
        config.runs = ConfigDict(runs, sort_keys=False)
    if arg == "runs":
        runs = {"plain": {}, "noisy": {"task": {"noise": 0.5, "shift": 1.0}}}
        config.runs = ConfigDict(runs, sort_keys=False)
        config.seeds = 2
    return config
