"""Step time, memory and compile time of every ISNet over the plain classifier's.

``python benchmarks/isnet_variants.py [--models resnet18 densenet121] [--size 224] [--batch 4]
[--variants selective original …] [--rounds 5] [--out FILE.json]``

All programs of a model are compiled first; then they run in turn in one process, and the median of
the ratios to the plain step is printed beside what the count of convolutions predicts: for L
layers a plain step has 3L - 1, one epsilon map 6L - 1 (2.00), C maps 3L(1 + C) (1 + C), z+ 9L (3).
Temporaries are XLA's own figure for a program's peak beside its arguments and results; peak counts
those too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isnet_jax import isnet, lrp, models

CLASSES = 3
FLEX = lrp.create("isnet_flex")
# name -> (arguments of ISNet, factor that counting convolutions predicts)
VARIANTS: dict[str, tuple[dict | None, float]] = {
    "plain": (None, 1),
    "selective": ({"composite": FLEX}, 2),
    "selective + z^B": ({}, 2),
    "selective, remat": ({"composite": FLEX, "remat": True}, 2),
    "selective, deep": ({"composite": FLEX, "deep": True}, 2),
    "stochastic": ({**isnet.VARIANTS["stochastic"], "composite": FLEX}, 2),
    "original": ({**isnet.VARIANTS["original"], "composite": FLEX}, 1 + CLASSES),
    "grad x input": (isnet.VARIANTS["grad_x_input"], 1 + CLASSES),
    "softmax grad x input": (isnet.VARIANTS["softmax_grad_x_input"], 2),
    "z+": (
        {"start": lrp.AllLogits(), "composite": lrp.create("zplus")},
        3,
    ),
    "dual": (isnet.VARIANTS["dual"], 4),  # the forward is shared: 3 (z+) + 2 (epsilon) - 1
}


def program(model_name: str, variant: str, size: int, batch: int):
    """(compiled SGD step, its arguments, seconds to trace, seconds to compile)."""
    options = VARIANTS[variant][0]
    method = None if options is None else isnet.ISNet(**options)
    model = models.create(model_name, num_classes=CLASSES, rngs=nnx.Rngs(0))
    graphs = isnet.programs(model, *(method.composites if method else (FLEX,)))
    params, rest = isnet.variables(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3, momentum=0.9))
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.random((batch, size, size, 3)), jnp.float32),
        "mask": jnp.zeros((batch, size, size, 1)).at[:, size // 4 : -size // 4].set(1.0),
        "label": jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32),
    }

    def step(params, rest, opt_state, data, rng):
        def loss(params):
            return isnet.objective(graphs, params, rest, data, method, rng=rng)

        (value, (_, new_rest)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), new_rest, opt_state

    arguments = (params, rest, optimizer.init(params), data, jax.random.key(0))
    start = time.perf_counter()
    lowered = jax.jit(step).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, arguments, traced - start, time.perf_counter() - traced


def seconds(compiled, arguments) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - start


def measure(model: str, options: argparse.Namespace) -> list[dict]:
    """A row a variant: median ratio to plain, its spread, memory, compile time."""
    built = {}
    for variant in ("plain", *(v for v in options.variants if v != "plain")):
        built[variant] = program(model, variant, options.size, options.batch)
        print(f"{model}, {variant}: compiled in {built[variant][3]:.0f} s", file=sys.stderr)
    times: dict[str, list[float]] = {variant: [] for variant in built}
    for turn in range(options.rounds + 1):
        for variant, (compiled, arguments, *_) in built.items():
            taken = seconds(compiled, arguments)
            if turn:  # the first round warms up
                times[variant].append(taken)
    plain = built["plain"][0].memory_analysis().temp_size_in_bytes
    # The new state is as large as the old one; the batch comes on top.
    state, data = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        for part in (built["plain"][1][:3], built["plain"][1][3])
    )
    held = 2 * state + data
    rows = []
    for variant, (compiled, _, tracing, compiling) in built.items():
        ratios = [a / b for a, b in zip(times[variant], times["plain"], strict=True)]
        memory = compiled.memory_analysis().temp_size_in_bytes
        rows.append(
            {
                "model": model,
                "variant": variant,
                "size": options.size,
                "batch": options.batch,
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "theory": VARIANTS[variant][1],
                "seconds": round(statistics.median(times[variant]), 4),
                "temporaries_mib": round(memory / 2**20, 1),
                "temporaries_ratio": round(memory / plain, 3),
                "peak_mib": round((memory + held) / 2**20, 1),
                "peak_ratio": round((memory + held) / (plain + held), 3),
                "trace_seconds": round(tracing, 1),
                "compile_seconds": round(compiling, 1),
            }
        )
    return rows


def show(row: dict) -> None:
    """One line of the table."""
    print(
        f"{row['model']:12s} {row['variant']:21s} ratio {row['ratio']:.2f} "
        f"[{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]  theory {row['theory']}  "
        f"{row['seconds']:.3f} s  temporaries {row['temporaries_mib']:.0f} MiB "
        f"({row['temporaries_ratio']:.2f})  peak {row['peak_mib']:.0f} ({row['peak_ratio']:.2f})  "
        f"trace {row['trace_seconds']:.0f} s  compile {row['compile_seconds']:.0f} s",
        flush=True,
    )


def main() -> None:
    """Measures every model and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "densenet121"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file; rows are added to those in it")
    options = parser.parse_args()
    device = jax.devices()[0]
    about = {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    print(about)
    done = (
        json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    )
    for model in options.models:
        rows = measure(model, options)
        for row in rows:
            show(row)
        done += rows
        if options.out:
            options.out.write_text(json.dumps({"about": about, "rows": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
