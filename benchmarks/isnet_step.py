"""Step time and memory of an ISNet against the plain classifier, ResNet-18.

``python benchmarks/isnet_step.py [--sizes 64 224] [--rounds 7] [--batch 4] [--out FILE.json]``

Both programs are compiled first; then they run in turn, plain and ISNet, in one process, and the
median of the ratios is printed with the theory's beside it: (6L - 1) / (3L - 1) convolutions,
2.00, for one epsilon map. Memory: XLA's own figure for the program's temporaries, and the peak
resident size of a fresh process that runs only that program.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isnet_jax import isnet, lrp, models

LAYERS, CLASSES = 20, 3
PLAIN = 3 * LAYERS - 1
METHODS: dict[str, tuple[isnet.ISNet | None, float]] = {
    "plain": (None, 1.0),
    "selective, LRP-Flex": (
        isnet.ISNet(composite=lrp.create("isnet_flex")),
        (6 * LAYERS - 1) / PLAIN,
    ),
    "selective, LRP-Flex + z^B": (
        isnet.ISNet(composite=lrp.create("isnet_flex_zb")),
        (6 * LAYERS - 1 + 7) / PLAIN,
    ),
    "original (3 maps), LRP-Flex": (
        isnet.ISNet(lrp.EachLogit(), lrp.create("isnet_flex")),
        (PLAIN + CLASSES * 3 * LAYERS) / PLAIN,
    ),
}


def program(method: isnet.ISNet | None, size: int, batch: int):
    """(compiled SGD step, its arguments, seconds of tracing and compiling)."""
    model = models.create("resnet18", num_classes=CLASSES, rngs=nnx.Rngs(0))
    graphs = isnet.programs(model, method.composite if method else lrp.create("isnet_flex"))
    params, rest = isnet.variables(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3, momentum=0.9))
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.random((batch, size, size, 3)), jnp.float32),
        "mask": jnp.zeros((batch, size, size, 1)).at[:, size // 4 : -size // 4].set(1.0),
        "label": jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32),
    }

    def step(params, rest, opt_state, data):
        def loss(params):
            return isnet.objective(graphs, params, rest, data, method)

        (value, (_, new_rest)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), new_rest, opt_state

    arguments = (params, rest, optimizer.init(params), data)
    start = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    return compiled, arguments, time.perf_counter() - start


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def peak_mib() -> float:
    """Peak resident MiB of this process. ru_maxrss would count what the parent held at the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    return math.nan


def alone(name: str, size: int, batch: int) -> float:
    """Peak resident MiB of a fresh process that compiles and runs three steps of one method."""
    command = [sys.executable, __file__, "--alone", name, "--sizes", str(size)]
    done = subprocess.run(
        [*command, "--batch", str(batch)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure(size: int, batch: int, rounds: int) -> list[dict]:
    """A row a method: median ratio to plain, spread, memory and compile time."""
    built = {name: program(method, size, batch) for name, (method, _) in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(rounds + 1):
        for name, (compiled, arguments, _) in built.items():
            taken = seconds(lambda c=compiled, a=arguments: c(*a))
            if turn:  # the first round warms up
                times[name].append(taken)
    rows = []
    for name, (compiled, _, compile_seconds) in built.items():
        ratios = [a / b for a, b in zip(times[name], times["plain"], strict=True)]
        memory = compiled.memory_analysis()
        rows.append(
            {
                "method": name,
                "size": size,
                "batch": batch,
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "theory": round(METHODS[name][1], 3),
                "seconds": round(statistics.median(times[name]), 4),
                "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 1),
                "peak_rss_mib": round(alone(name, size, batch), 1),
                "compile_seconds": round(compile_seconds, 1),
            }
        )
    return rows


def main() -> None:
    """Runs the comparison, or (``--alone``) one method for its memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out")
    parser.add_argument("--alone", choices=METHODS)
    options = parser.parse_args()
    if options.alone:
        compiled, arguments, _ = program(METHODS[options.alone][0], options.sizes[0], options.batch)
        for _ in range(3):
            jax.block_until_ready(compiled(*arguments))
        print(peak_mib())
        return
    device = jax.devices()[0]
    about = {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    print(about)
    rows = [row for size in options.sizes for row in measure(size, options.batch, options.rounds)]
    for row in rows:
        print(
            f"{row['size']:4d}px  {row['method']:28s} ratio {row['ratio']:.2f} "
            f"[{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]  theory {row['theory']:.2f}  "
            f"{row['seconds']:.3f} s  temporaries {row['temporaries_mib']:.0f} MiB  "
            f"peak {row['peak_rss_mib']:.0f} MiB  compile {row['compile_seconds']:.0f} s"
        )
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"about": about, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
