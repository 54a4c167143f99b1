"""Forward pass and training step of segmentation networks, in turn with PyTorch's where it is.

``python benchmarks/segmentation_step.py [--models unet resenc_l mednext_l] [--sizes 64 96]
[--parts forward step] [--rounds 5] [--dtype float32] [--lowering auto] [--out FILE.json]``

Each framework has a process of its own, which waits while the other computes; batch 1, one
channel, 10 classes, random weights. A step is the forward pass with all deep-supervision heads,
the mean of the squared logits and all gradients; no optimizer. Ratios are ours / PyTorch's, the
median over rounds. Temporaries are XLA's own figure for the compiled program.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def jax_program(name: str, size: int, part: str, how: dict) -> tuple[Callable[[], None], dict]:
    """(what to time, seconds of compiling and MiB of temporaries)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from touchstone_jax.models import accepts, create

    how = {key: value for key, value in how.items() if accepts(name, key)}
    made = nnx.eval_shape(lambda: create(name, num_classes=10, rngs=nnx.Rngs(0), **how))
    made.deterministic = part == "forward"
    graphdef, state = nnx.split(made)
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32))

    params = jax.tree.map(draw, nnx.to_pure_dict(state))
    x = jnp.asarray(rng.standard_normal((1, size, size, size, 1), np.float32))

    def forward(params: dict, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x)

    def loss(params: dict, x: jax.Array) -> jax.Array:
        return sum(jnp.square(scale).mean() for scale in forward(params, x))

    start = time.perf_counter()
    run = jax.jit(forward if part == "forward" else jax.value_and_grad(loss))
    run = run.lower(params, x).compile()
    seconds = time.perf_counter() - start
    memory = run.memory_analysis().temp_size_in_bytes / 2**20
    about = {"compile_seconds": round(seconds, 1), "temporaries_mib": round(memory)}
    return lambda: jax.block_until_ready(run(params, x)), about


def torch_program(name: str, size: int, part: str, how: dict) -> tuple[Callable[[], None], dict]:
    """(what to time, {})."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    import torch_networks

    cuda = torch.cuda.is_available()
    device, dtype = "cuda" if cuda else "cpu", getattr(torch, how["dtype"])
    model = torch_networks.create(name).to(device)
    model.train(part == "step")
    x = torch.randn(1, 1, size, size, size, device=device)

    def run() -> None:
        enabled = dtype != torch.float32
        with torch.autocast(device, dtype, enabled), torch.set_grad_enabled(part == "step"):
            logits = model(x)
        if part == "step":
            model.zero_grad()
            sum(scale.float().square().mean() for scale in logits).backward()
        if cuda:
            torch.cuda.synchronize()

    return run, {}


def work(framework: str, name: str, size: int, part: str, how: dict) -> None:
    """A child: says what compiling took, then one time for each line that it reads."""
    program = {"jax": jax_program, "torch": torch_program}[framework]
    run, about = program(name, size, part, how)
    run()
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def measure(name: str, size: int, part: str, how: dict, rounds: int) -> dict:
    """One row of the table."""
    frameworks = ["jax", *(["torch"] if importlib.util.find_spec("torch") else [])]
    children, about = {}, {}
    for framework in frameworks:
        task = json.dumps([framework, name, size, part, how])
        children[framework] = subprocess.Popen(
            [sys.executable, __file__, "--work", task],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        about |= json.loads(children[framework].stdout.readline())
    times: dict[str, list[float]] = {framework: [] for framework in frameworks}
    for _ in range(rounds):
        for framework, child in children.items():
            child.stdin.write("\n")
            child.stdin.flush()
            times[framework].append(float(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    row = {"model": name, "size": size, "part": part, **about}
    row |= {f"{f}_seconds": round(statistics.median(t), 3) for f, t in times.items()}
    if "torch" in times:
        pairs = zip(times["jax"], times["torch"], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        row |= {"ratio": round(statistics.median(ratios), 2)}
        row |= {"ratio_min": round(ratios[0], 2), "ratio_max": round(ratios[-1], 2)}
    return row


def main() -> None:
    """Measure what was asked for; one line of JSON a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["unet", "resenc_l", "mednext_l"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--parts", nargs="+", default=["forward", "step"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*json.loads(options.work))
        return
    how = {"dtype": options.dtype, "lowering": options.lowering, "remat": options.remat}
    rows = []
    for size in options.sizes:
        for name in options.models:
            for part in options.parts:
                rows.append(measure(name, size, part, how, options.rounds))
                rows[-1]["load"] = round(os.getloadavg()[0], 1)
                print(json.dumps(rows[-1]), flush=True)
    if options.out:
        import jax

        about = {
            "date": datetime.date.today().isoformat(),
            "device": f"{jax.devices()[0].platform} {jax.devices()[0].device_kind}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            **how,
        }
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
