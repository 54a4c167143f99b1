"""Sliding-window prediction: speed, peak memory at 9 and 100 organs, and number of compilations.

``python benchmarks/sliding_window.py [--shape 128 128 96] [--window 32] [--out FILE.json]``

A tiny fixed network (a convolution to 16 features, then a 1x1x1 convolution to the classes), so
that what stands around a network is measured, predicts one volume by three routes, each with 10 and
101 classes in a process of its own:

- head: features are summed, the last layer is applied to finished planes;
- logits: logits are summed in an accumulator of at most ``--accumulator-mib``; with many classes
  the volume is then done in columns, with more windows;
- full: what sliding windows usually do, logits of the whole volume in one array, then argmax.

All routes must give the same labels (a digest is compared; ties aside). Peak memory is what the
process' resident set grew by, from before the network was made to its highest; the first volume
compiles, the next rounds are timed. Compilations are counted over two further volume shapes.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from touchstone_jax.infer import SlidingWindow
from touchstone_jax.infer.windows import gaussian, window_starts

ROUTES = ("head", "logits", "full")
ORGANS = (9, 100)
FEATURES = 16
Predict = Callable[[np.ndarray], np.ndarray]


def network(classes: int) -> tuple[Callable, Callable]:
    """(features, head) with fixed random weights."""
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 3, 1, FEATURES), (1, 1, 1, FEATURES, classes)]
    kernels = [
        jnp.asarray(rng.normal(size=s, scale=np.prod(s[:4]) ** -0.5).astype(np.float32))
        for s in shapes
    ]
    axes = ("NDHWC", "DHWIO", "NDHWC")

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1,) * 3, "SAME", dimension_numbers=axes)

    return lambda x: jax.nn.relu(convolve(x, kernels[0])), lambda x: convolve(x, kernels[1])


def full(logits: Callable, window: int, classes: int) -> Predict:
    """Everything in one array of the volume times the classes."""
    compiled = jax.jit(logits)
    weight = np.einsum("x,y,z->xyz", *[gaussian(window)] * 3)[..., None]

    def run(image: np.ndarray) -> np.ndarray:
        total = np.zeros((*image.shape, classes), np.float32)
        for corner in itertools.product(*(window_starts(n, window, 0.5) for n in image.shape)):
            box = tuple(slice(c, c + window) for c in corner)
            total[box] += np.asarray(compiled(image[box][None, ..., None])[0]) * weight
        return total.argmax(-1).astype(np.uint8)

    return run


def predictor(route: str, classes: int, window: int, shape: list[int], mib: float) -> Predict:
    """A function from image to labels."""
    features, head = network(classes)
    options = {"cross_section": shape[:2], "accumulator_mib": mib}
    if route == "head":
        return SlidingWindow(features, (window,) * 3, head=head, **options).labels
    if route == "logits":
        return SlidingWindow(lambda x: head(features(x)), (window,) * 3, **options).labels
    return full(lambda x: head(features(x)), window, classes)


def network_seconds(route: str, classes: int, window: int) -> float:
    """The network alone on one window, compiled."""
    features, head = network(classes)
    run = jax.jit(features if route == "head" else lambda x: head(features(x)))
    x, seconds = jnp.ones((1, window, window, window, 1)), []
    for _ in range(12):
        start = time.perf_counter()
        run(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def resident_mib(what: str) -> float:
    """VmRSS (now) or VmHWM (highest) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


class Compilations(logging.Handler):
    """Counts what JAX says that it compiles."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called for each message."""
        self.count += record.getMessage().startswith("Finished XLA compilation")


def one(route: str, classes: int, options: argparse.Namespace) -> dict:
    """One route in this process."""
    shape = options.shape
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    jax.block_until_ready(jnp.zeros(1) + 1)  # the backend is no part of the prediction
    before, seconds = resident_mib("VmRSS"), []
    run = predictor(route, classes, options.window, shape, options.accumulator_mib)
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        labels = run(image)
        seconds.append(time.perf_counter() - start)
    peak = resident_mib("VmHWM") - before
    counter = Compilations()
    logging.getLogger("jax").addHandler(counter)
    with jax.log_compiles():
        for other in ([n - 7 for n in shape], [options.window, shape[0], shape[1] - 3]):
            run(image[tuple(slice(n) for n in other)])
    median = statistics.median(seconds[1:])
    row = {
        "route": route,
        "classes": classes,
        "seconds": round(median, 2),
        "mvoxel_per_s": round(np.prod(shape) / 1e6 / median, 3),
        "first_seconds": round(seconds[0], 2),
        "peak_mib": round(peak),
        "compilations_of_two_more_shapes": counter.count,
        "labels": [int(n) for n in np.bincount(labels.ravel(), minlength=classes)[:8]],
    }
    each = network_seconds(route, classes, options.window)
    if route != "full":
        programs = run.__self__.programs
        row |= {"tile": list(programs.tile), "windows": run.__self__.count(shape)}
        row["network_alone_seconds"] = round(each * row["windows"], 2)
        for name in ("add", "labels", "clear"):
            memory = getattr(programs, f"compiled_{name}").memory_analysis()
            held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            row[f"{name}_program_mib"] = round(held / 2**20, 1)
    return row


def check(rows: list[dict]) -> None:
    """Refuse routes that disagree by more than ties explain.

    Raises:
        AssertionError: they do.
    """
    for classes in {row["classes"] for row in rows}:
        counts = [row["labels"] for row in rows if row["classes"] == classes]
        for other in counts[1:]:
            apart = np.abs(np.subtract(counts[0], other)).max() / max(counts[0])
            assert apart < 1e-3, f"{classes} classes: routes differ: {counts}"


def main() -> None:
    """Runs every route in a process of its own and prints the rows; ``--out`` writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 96])
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accumulator-mib", type=float, default=64)
    parser.add_argument("--out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options)))
        return
    rows = []
    for organs, route in itertools.product(ORGANS, ROUTES):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", route, str(organs + 1)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print({k: v for k, v in rows[-1].items() if k != "labels"}, flush=True)
    check(rows)
    if options.out:
        device = jax.devices()[0]
        about = {
            "date": datetime.date.today().isoformat(),
            "device": f"{device.platform} {device.device_kind}",
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "numpy")},
            **{k: getattr(options, k) for k in ("shape", "window", "rounds", "accumulator_mib")},
        }
        rows = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
        text = json.dumps({"about": about, "rows": rows}, indent=1)
        Path(options.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
